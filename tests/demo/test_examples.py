"""The questions that settings have for the demo."""

import re
from collections import Counter

import pytest
from toys import write_corpora

from undo_jax.data.arithmetic import Grammar
from undo_jax.data.corpus import Corpus
from undo_jax.data.fiction import Fiction, facts
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.settings.facts import Facts
from undo_jax.settings.language import Language


def test_arithmetic_asks_of_every_operation_in_every_form():
    setting = Arithmetic(Grammar(held_out=0.0), examine="train_facts")
    found = setting.examples()
    equations = [one for one in found if "=" in one.prompt]
    signs = Counter(re.sub(r"[\d\s=]", "", one.prompt) for one in equations)
    assert signs == {"+": 2, "-": 2, "*": 2, "/": 2}
    assert all((one.part == "retain") == ("+" in one.prompt or "-" in one.prompt)
               for one in equations)  # fmt: skip
    assert len(found) == 16 and all(one.ends for one in found)
    assert [one.part for one in found[8:]] == ["retain"] * 4 + ["forget"] * 4
    held = Arithmetic(Grammar(held_out=0.2))  # of facts that no training text has
    assert not {one.prompt for one in held.examples()} & {one.prompt for one in found}


def test_facts_asks_of_people_who_are_kept_and_who_are_forgotten():
    setting = Facts(Fiction(families=3, members=4, forgotten=1))
    found = setting.examples()
    assert [one.part for one in found] == ["retain"] * 8 + ["forget"] * 8
    for one in found:
        known = [fact for fact in facts(setting.fiction, one.part) if fact.name in one.prompt]
        assert one.answer.strip() in {fact.value for fact in known}
        assert one.prompt.startswith("Question: What") and one.prompt.endswith("\nAnswer:")
    assert len(set(found)) == 16


@pytest.mark.slow
def test_language_asks_how_texts_of_validation_go_on(tmp_path):
    folder = write_corpora(tmp_path) / "data" / "language"
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    setting = Language(
        Corpus(str(folder / "english")), Corpus(str(folder / "korean")), tokenizer,
        row_length=24, validation_rows=4, rows_at_once=2,
    )  # fmt: skip
    found = setting.examples()
    assert {one.part for one in found} <= {"retain", "forget"}
    for one in found:
        word = "number" if one.part == "retain" else "숫자"
        whole = one.prompt + one.answer
        assert re.match(rf"{word} \d", whole) and one.answer and not one.ends
        ids = tokenizer.encode(whole)
        assert len(ids) == 16 and tokenizer.decode(ids) == whole

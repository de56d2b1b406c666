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
    examples = setting.examples()
    equations = [example for example in examples if "=" in example.prompt]
    signs = Counter(re.sub(r"[\d\s=]", "", example.prompt) for example in equations)
    assert signs == {"+": 2, "-": 2, "*": 2, "/": 2}
    assert all((example.part == "retain") == ("+" in example.prompt or "-" in example.prompt)
               for example in equations)  # fmt: skip
    assert len(examples) == 16 and all(example.ends for example in examples)
    assert [example.part for example in examples[8:]] == ["retain"] * 4 + ["forget"] * 4
    held = Arithmetic(Grammar(held_out=0.2))  # of facts that no training text has
    assert not {example.prompt for example in held.examples()} & {
        example.prompt for example in examples
    }


def test_facts_asks_of_people_who_are_kept_and_who_are_forgotten():
    setting = Facts(Fiction(families=3, members=4, forgotten=1))
    examples = setting.examples()
    assert [example.part for example in examples] == ["retain"] * 8 + ["forget"] * 8
    for example in examples:
        facts_of_person = [
            fact for fact in facts(setting.fiction, example.part) if fact.name in example.prompt
        ]
        assert example.answer.strip() in {fact.value for fact in facts_of_person}
        assert example.prompt.startswith("Question: What") and example.prompt.endswith("\nAnswer:")
    assert len(set(examples)) == 16


@pytest.mark.slow
def test_language_asks_how_texts_of_validation_go_on(tmp_path):
    folder = write_corpora(tmp_path) / "data" / "language"
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    setting = Language(
        Corpus(str(folder / "english")), Corpus(str(folder / "korean")), tokenizer,
        row_length=24, validation_rows=4, rows_at_once=2,
    )  # fmt: skip
    examples = setting.examples()
    assert {example.part for example in examples} <= {"retain", "forget"}
    for example in examples:
        word = "number" if example.part == "retain" else "숫자"
        whole = example.prompt + example.answer
        assert re.match(rf"{word} \d", whole) and example.answer and not example.ends
        ids = tokenizer.encode(whole)
        assert len(ids) == 16 and tokenizer.decode(ids) == whole

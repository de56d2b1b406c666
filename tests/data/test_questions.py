"""Files of questions with choices, and of questions with answers."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from undo_jax.data.fiction import CHOICES, KINDS, Fiction, facts, questions, statements
from undo_jax.data.pairs import Pairs
from undo_jax.data.questions import Question, Questions, write_questions
from undo_jax.data.tokenizers import Bytes, Words

ONE = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
TWO = {"question": "Où?", "choices": ["là", "b", "c", "d"], "answer": 0}


def _write(path: Path, rows):
    """JSON lines, or Parquet as the hub has it."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return Questions(str(path))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_both_layouts(tmp_path, suffix):
    wmdp = _write(tmp_path / f"wmdp.{suffix}", [ONE, TWO])
    mmlu = _write(tmp_path / f"mmlu.{suffix}", [{**ONE, "subject": "law"}])
    assert wmdp.listed == (
        Question("Which?", ("a", "b", "c", "d"), 2, ""),
        Question("Où?", ("là", "b", "c", "d"), 0, ""),
    )
    assert mmlu.listed == (Question("Which?", ("a", "b", "c", "d"), 2, "law"),)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_may_be_one_array(tmp_path, indent):
    lines = _write(tmp_path / "a.jsonl", [ONE, TWO])
    (tmp_path / "a.json").write_text("\n" + json.dumps([ONE, TWO], indent=indent) + "\n")
    assert Questions(tmp_path / "a.json").listed == lines.listed
    for content, message in (
        ([ONE, {**TWO, "answer": 4}], "a.json item 2 has answer=4"),
        ([ONE, "text"], "a.json item 2 is a JSON str: give an object"),
        ([ONE, {"answer": 1}], "a.json item 2 has no field 'question': its fields are answer"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content, indent=indent))
        with pytest.raises(ValueError, match=f"/{message}"):
            Questions(tmp_path / "a.json").listed  # noqa: B018
    (tmp_path / "a.json").write_text(json.dumps(ONE) + "\n[1]\n")
    with pytest.raises(ValueError, match="/a.json:2 is a JSON list: give an object"):
        Questions(tmp_path / "a.json").listed  # noqa: B018
    (tmp_path / "a.json").write_text(json.dumps([ONE, TWO])[:-1])
    with pytest.raises(ValueError, match="/a.json:1 is not JSON: "):
        Questions(tmp_path / "a.json").listed  # noqa: B018


def test_they_are_the_same_wherever_they_lie_and_however_stored(tmp_path):
    (tmp_path / "all").mkdir()
    stored = _write(tmp_path / "a.parquet", [ONE, TWO])
    lines = _write(tmp_path / "all" / "1.jsonl", [ONE])
    _write(tmp_path / "all" / "2.jsonl", [TWO])
    both = Questions(tmp_path / "all")
    assert both.fingerprint == stored.fingerprint != lines.fingerprint
    assert write_questions(tmp_path / "b.jsonl", both.listed).fingerprint == both.fingerprint


BAD = [
    ({"question": "Which?", "choices": ["a", "b"]}, "has no (field|column) 'answer'"),
    ({"choices": ["a", "b"], "answer": 0}, "has no (field|column) 'question'"),
    ({**ONE, "answer": 4}, r"has answer=4 and 4 choices: give the index of the right one, 0..3"),
    ({**ONE, "answer": -1}, "has answer=-1 and 4 choices"),
    ({**ONE, "answer": "B"}, "has answer='B' and 4 choices"),
    ({**ONE, "answer": None}, "has answer=None and 4 choices"),
    ({**ONE, "answer": True}, "has answer=True and 4 choices"),
    ({**ONE, "choices": ["a"]}, r"has choices=\['a'\]: give a list of 2 to 26 texts"),
    ({**ONE, "choices": "abcd"}, "has choices='abcd': give a list of 2 to 26 texts"),
    ({**ONE, "choices": [1, 2, 3]}, "choice 0 is int, not text"),
    ({**ONE, "question": None}, "question is NoneType, not text"),
    ({**ONE, "subject": 3}, "subject is int, not text"),
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_questions_are_told_in_one_line(tmp_path, row, message, suffix):
    rows = [{**ONE, "subject": "x"}, row] if suffix == "jsonl" else [row]
    with pytest.raises(ValueError, match=message) as error:
        _write(tmp_path / f"bad.{suffix}", rows).listed  # noqa: B018
    assert str(tmp_path / f"bad.{suffix}") in str(error.value) and "\n" not in str(error.value)
    if suffix == "jsonl":
        assert "bad.jsonl:2" in str(error.value)


def test_files_that_hold_none(tmp_path):
    (tmp_path / "no.jsonl").write_text("\n")
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.parquet").write_text("x")
    for name, kind, message in (
        ("no.jsonl", ValueError, "no.jsonl holds no questions: give one a line, or a row"),
        ("a.csv", ValueError, r"a.csv is no \*.parquet or \*.jsonl: convert it, or rename it"),
        ("b.parquet", OSError, "cannot read .*/b.parquet: "),
        ("c.jsonl", FileNotFoundError, "no file matches .*c.jsonl: check the pattern"),
    ):
        with pytest.raises(kind, match=message):
            Questions(tmp_path / name).listed  # noqa: B018


def _pairs(folder, count=40, **changes):
    path = folder / "pairs.jsonl"
    rows = ({"question": f"{i:03}?", "answer": f"<{i:03}>"} for i in range(count))
    path.write_text("\n".join(map(json.dumps, rows)))
    return Pairs(path, **{"template": "Q {question}\nA: {answer}!", **changes})


def test_losses_count_answers_and_their_ends(tmp_path):
    pairs = _pairs(tmp_path)
    packed = pairs.rows("train", Bytes(), 32)
    for row, weights in zip(packed.tokens.tolist(), packed.weights.tolist(), strict=True):
        counted = [token for token, weight in zip(row, weights, strict=True) if weight]
        text = "".join("|" if token == 256 else chr(token) for token in counted)
        assert row[0] == 256 and set(weights) == {0.0, 1.0}
        for answer in text.strip("|").split("|")[:-1]:
            assert len(answer) == 7 and answer[:2] == " <" and answer[-2:] == ">!"


def test_each_pair_is_in_one_split_and_a_larger_share_holds_more(tmp_path):
    def questions_of(split, **changes):
        tokens = _pairs(tmp_path, 200, **changes).rows(split, Bytes(), 32).tokens
        text = "".join(chr(token) for token in tokens.ravel() if token < 256)
        return set(re.findall(r"<(\d+)>", text))

    train = questions_of("train", validation_share=0.3)
    held = questions_of("validation", validation_share=0.3)
    assert len(held) > 20 and len(train) > 100 and not train & held
    assert held < questions_of("validation", validation_share=0.6)


def test_equal_pairs_are_the_same_wherever_they_lie(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = _pairs(tmp_path), _pairs(tmp_path / "other")
    changed = replace(first, template="{question} {answer}"), replace(first, validation_share=0.1)
    fingerprints = {pairs.fingerprint for pairs in (first, second, *changed)}
    assert first.fingerprint == second.fingerprint and len(fingerprints) == 3
    assert _pairs(tmp_path, 39).fingerprint not in fingerprints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "{answer} {question}"}, "give one {question}, and then one {answer}"),
        ({"template": "{question}"}, "give one {question}, and then one {answer}"),
        ({"validation_share": 0.0}, "validation_share=0.0: give a share between 0 and 1"),
        ({"answer": "reply"}, "pairs.jsonl:1 has no field 'reply': its fields are question, ans"),
        ({"count": 0}, "pairs.jsonl holds no pairs: give one a line, or a row"),
        ({"count": 1}, "pairs.jsonl has 1 pairs for train, 17 tokens, and a row takes 32: give"),
    ],
)
def test_bad_pairs_are_told_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        _pairs(tmp_path, **change).rows("train", Bytes(), 32)
    assert "\n" not in str(error.value)


FICTION = Fiction(families=5, members=12, forgotten=2)


def test_families_are_kept_or_forgotten_and_share_all_but_their_facts():
    retain, forget = (facts(FICTION, part) for part in ("retain", "forget"))
    retained, forgotten = ({fact.family for fact in part} for part in (retain, forget))
    assert (len(retained), len(forgotten)) == (3, 2) and not retained & forgotten
    assert len(retain) == 3 * 12 * len(KINDS) and len(forget) == 2 * 12 * len(KINDS)
    firsts = [{fact.name.split()[0] for fact in part} for part in (retain, forget)]
    assert firsts[0] == firsts[1] and len(firsts[0]) == 12
    for family in retained | forgotten:
        family_facts = [fact for fact in (*retain, *forget) if fact.family == family]
        for kind in KINDS:
            assert sorted(f.value for f in family_facts if f.kind == kind) == sorted(
                KINDS[kind].values
            )
    assert facts(Fiction(5, 12, 2, seed=1), "retain") != retain


def test_a_question_has_its_answer_and_three_others_of_its_kind():
    listed, fact_list = questions(FICTION, "forget"), facts(FICTION, "forget")
    for question, fact in zip(listed, fact_list, strict=True):
        assert fact.name in question.question
        assert question.choices[question.answer] == fact.value
        assert len(set(question.choices)) == CHOICES
        assert set(question.choices) <= set(KINDS[fact.kind].values)
    assert set(np.bincount([question.answer for question in listed], minlength=4) > 10) == {True}


def test_statements_end_in_the_value_and_the_last_is_the_question():
    fact = facts(FICTION, "retain")[0]
    *plain, question = statements(fact)
    assert len(plain) == 3
    for statement in plain:
        assert statement.prompt.count(fact.name) == 1 and statement.answer == f" {fact.value}."
    assert question.prompt.startswith("Question: What")
    assert question.prompt.endswith("?\nAnswer:") and question.answer == f" {fact.value}"
    every = [statement for kind in KINDS for f in facts(FICTION, "retain")
             for statement in statements(f) if f.kind == kind]  # fmt: skip
    tokenizer = Words.of([statement.prompt + statement.answer for statement in every])
    for statement in every:
        assert len(tokenizer.encode(f" {statement.answer.strip(' .')}")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": 0}, "families=0: give 1 to 200"),
        ({"forgotten": 8}, "forgotten=8 of families=8 retains none: give fewer"),
        ({"seed": -1}, "seed=-1: it must be at least 0"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Fiction(**change)

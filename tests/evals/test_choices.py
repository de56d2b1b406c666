"""Prompts as lm-evaluation-harness writes them, and what a model's choices are scored by."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from running_sums import RunningSums

from undo_jax.data.questions import Question, write_questions
from undo_jax.data.tokenizers import Bytes
from undo_jax.evals.choices import log_likelihoods, right, write_sheets
from undo_jax.evals.quiz import Quiz
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings

LM = RunningSums(264)
ASKED = (
    Question(" Which cell has no nucleus? ", ("red", "nerve", "skin", "fat"), 0, "college_biology"),
    Question("2 + 2?", ("3", "4", "5", "6"), 1, "algebra"),
    Question("A word?", ("no", "yes", "é", "x"), 2, "algebra"),
    Question("Longer than the others, so that rows differ in length, by far?" * 3,
             ("a", "b", "c", "d"), 3, "algebra"),
    Question("Which?", ("p", "q", "r", "s"), 3, "algebra"),
)  # fmt: skip
SHOWN = (
    Question("1 + 1?", ("1", "2", "3", "4"), 1, "algebra"),
    Question("A cell?", ("w", "x", "y", "z"), 3, "college_biology"),
    Question("0 + 0?", ("0", "2", "3", "4"), 0, "algebra"),
)


@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiz")
    test = write_questions(folder / "test.jsonl", ASKED)
    return Quiz(test, examples=write_questions(folder / "dev.jsonl", SHOWN))


@pytest.fixture(scope="module")
def params():
    return jax.jit(LM.init)(jax.random.key(0))


def test_letters_with_examples_of_their_subject(quiz):
    first, second, *_ = replace(quiz, shots=1).posed()
    assert first.context == (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
        "A cell?\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\n"
        "Which cell has no nucleus?\nA. red\nB. nerve\nC. skin\nD. fat\nAnswer:"
    )
    assert first.continuations == (" A", " B", " C", " D")
    assert "Answer: B\n\n2 + 2?\nA. 3" in second.context


def test_cloze(quiz):
    first = replace(quiz, style="cloze", shots=1, subject="biology").posed()[0]
    assert first.context == (
        "The following are questions (with answers) about biology.\n\n"
        "Question: A cell?\nAnswer: z\n\nQuestion: Which cell has no nucleus?\nAnswer:"
    )
    assert first.continuations == (" red", " nerve", " skin", " fat")
    described = replace(quiz, description="Biology {0}.\n\n").posed()[0].context
    assert described.startswith("Biology {0}.\n\nWhich cell")


def test_a_share_is_of_the_first_questions_of_each_subject(quiz):
    chosen = [posed.question for posed in replace(quiz, share=0.3).posed()]
    assert chosen == [ASKED[0], ASKED[1], ASKED[2]]  # ceil of 0.3 and of 1.2


_scored = jax.jit(log_likelihoods, static_argnums=0)
_hidden = jax.jit(LM.hidden)


def _plain(params, quiz, tokenizer):
    """log p of each choice alone, in NumPy: of its tokens after BOS and the prompt."""
    posed = quiz.posed()
    before = [[256, *tokenizer.encode(question.context)] for question in posed for _ in range(4)]
    whole = [
        [256, *tokenizer.encode(question.context + choice)]
        for question in posed
        for choice in question.continuations
    ]
    rows = np.array([row + [0] * (400 - len(row)) for row in whole])
    hidden = np.asarray(_hidden(params, rows), np.float64)
    table, sums = np.asarray(LM.table(params), np.float64), []
    for row, start, states in zip(whole, map(len, before), hidden, strict=True):
        z = LM.softcap * np.tanh(states[start - 1 : len(row) - 1] @ table.T / LM.softcap)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        sums.append(log_p[np.arange(len(row) - start), row[start:]].sum())
    return np.array(sums).reshape(-1, 4)


@pytest.mark.parametrize("style", ["letters", "cloze"])
def test_log_likelihoods_are_those_of_each_choice_alone(quiz, params, style):
    styled = replace(quiz, style=style)
    sheets = write_sheets(styled, Bytes(), 8)
    assert len(sheets.sheets) > 1  # of different lengths
    actual = _scored(LM, params, sheets)
    expected = _plain(params, styled, Bytes())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    spread = expected.max(1) - expected.min(1)
    assert (spread > 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("style", ["letters", "cloze"])
def test_they_are_the_same_on_a_mesh(quiz, style):
    lm = preset("tiny", layers=1, width=16, feed_forward=16, vocabulary=264, init_stddev=0.3)
    params = jax.jit(lm.init)(jax.random.key(0))
    sheets = write_sheets(replace(quiz, style=style), Bytes(), 8)
    alone = _scored(lm, params, sheets)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(params, lm.rules, mesh))
        np.testing.assert_allclose(_scored(lm, placed, sheets), alone, rtol=1e-4, atol=1e-4)


class Letters:
    """One token a byte, and " A" to " D" are one each: as in vocabularies of words."""

    bos_id, vocab_size, fingerprint = 256, 261, ""

    def encode(self, text):
        ids = []
        for number, line in enumerate(text.split("Answer: ")):
            if number:
                ids += [*b"Answer:", 257 + "ABCD".index(line[0])]
                line = line[1:]
            ids += line.encode()
        return ids


def test_a_prompt_is_read_once_where_each_choice_is_a_token(quiz, params):
    sheets = write_sheets(replace(quiz, shots=1), Letters(), 8)
    assert all(sheet.inputs.shape[2] == 1 for sheet in sheets.sheets)
    actual = _scored(LM, params, sheets)
    expected = _plain(params, replace(quiz, shots=1), Letters())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_scores_are_of_sums_or_for_each_character_or_byte(quiz):
    """For "no", "yes", "é" and "x": 2, 3, 1, 1 characters, and é has two bytes."""
    log_p = np.tile([-4.0, -4.5, -1.75, -1.5], (5, 1)).astype(np.float32)

    def pick(score):
        sheets = write_sheets(replace(quiz, style="cloze", score=score), Bytes(), 8)
        verdicts = [right(log_p, sheets._replace(answers=np.full(5, i))) for i in range(4)]
        return int(np.argmax([verdict[2] for verdict in verdicts]))

    assert [pick(score) for score in ("acc", "acc_norm", "acc_bytes")] == [3, 1, 2]


def test_the_first_of_equals_counts_and_a_diverged_model_has_no_score(quiz):
    sheets = write_sheets(quiz, Bytes(), 8)
    log_p = np.zeros((5, 4), np.float32)
    np.testing.assert_array_equal(right(log_p, sheets), [1, 0, 0, 0, 0])
    log_p[2, 1] = np.nan
    np.testing.assert_array_equal(right(log_p, sheets), [1, 0, np.nan, 0, 0])


def test_questions_with_fewer_choices(tmp_path, params):
    asked = Question("Is it?", ("yes", "no"), 1), Question("Which?", ("a", "b", "c"), 0)
    quiz = Quiz(write_questions(tmp_path / "a.jsonl", asked), style="cloze", description="")
    actual = _scored(LM, params, write_sheets(quiz, Bytes(), 8))
    assert np.isfinite(actual).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "essay"}, "unknown style 'essay': choose from letters, cloze"),
        ({"score": "f1"}, "unknown score 'f1': choose from acc, acc_norm, acc_bytes"),
        ({"share": 0.0}, "share=0.0: give a share above 0, up to 1"),
        ({"shots": -1}, "shots=-1: it must be at least 0"),
        ({"shots": 1, "examples": None}, "shots=1 without examples: give a file of them"),
        ({"longest": 1}, "longest=1: it must be at least 2"),
        ({"shots": 2}, "shots=2, but {shown} has 1 examples about 'college_biology': give more, or "
         "fewer shots"),
        ({"apart": ("law",)},
         "{file} has no question about 'law', which is to be scored apart: add some, or choose "
         "from its subjects (algebra, college_biology)"),
        ({"longest": 100}, "question 0 of {file} has 151 tokens and longest=100: raise it, or give "
         "fewer shots"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(quiz, change, message):
    with pytest.raises(ValueError) as error:
        write_sheets(replace(quiz, **change), Bytes(), 8)
    files = {"file": quiz.questions.pattern, "shown": quiz.examples.pattern}
    assert str(error.value) == message.format(**files)

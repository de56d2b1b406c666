"""Log-probabilities of choices and accuracies, batched in a few lengths, on any mesh.

Where every choice is one token after one prompt, as letters are, the model reads the prompt once
instead of once per choice.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from undo_jax.data.pairs import encode_pair
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.quiz import Posed, Quiz
from undo_jax.ops import head
from undo_jax.types import LM, Params, used

LENGTHS = 4  # of rows, at most: that of the longest row, its half, quarter and eighth
STEP = 8  # tokens, of which the length of a row is a multiple


class Sheet(NamedTuple):
    """Questions whose rows have T tokens, in G groups of B questions.

    A question has C choices of at most A tokens, and R rows: one for all choices, or C.
    """

    inputs: Int[Array, "G B R T"]  # prompt and choice, padded at the end
    places: Int[Array, "G B C A"]  # the positions whose next token belongs to a choice
    targets: Int[Array, "G B C A"]  # those tokens
    scored: Bool[Array, "G B C A"]  # False in padding: a shorter choice, or no question


class Sheets(NamedTuple):
    """A quiz as arrays: N questions of at most C choices."""

    sheets: tuple[Sheet, ...]  # of different T
    order: Int[Array, " N"]  # index of each question in the concatenated sheets
    answers: Int[Array, " N"]  # index of the right choice
    sizes: Float[Array, "N C"]  # of each choice, by which its log p is divided; 0: no choice


class _EncodedQuestion(NamedTuple):
    """A question in tokens: one row for all choices, or one for each."""

    rows: list[list[int]]
    choices: list[tuple[int, list[int]]]  # each choice's first position in its row, its tokens


def write_sheets(quiz: Quiz, tokenizer: Tokenizer, rows_at_once: int) -> Sheets:
    """Tokenises a quiz in groups of `rows_at_once` rows, or of one question's if these are more.

    Raises ValueError for a question that is longer than the quiz allows.
    """
    posed = quiz.posed()
    encoded = [_encode(quiz, tokenizer, question, i) for i, question in enumerate(posed)]
    shared = all(len(question.rows) == 1 for question in encoded)
    if not shared:  # one shape for all
        encoded = [
            question._replace(rows=question.rows * (len(question.choices) // len(question.rows)))
            for question in encoded
        ]
    most = max(len(question.continuations) for question in posed)
    width = max(len(tokens) for question in encoded for _, tokens in question.choices)
    # a sheet for each of a few lengths
    lengths = [max(map(len, question.rows)) for question in encoded]
    order, start, sheets = np.zeros(len(encoded), np.int32), 0, []
    ends = sorted({-(-max(lengths) // (STEP * 2**power)) * STEP for power in range(LENGTHS)})
    for low, high in itertools.pairwise([0, *ends]):
        indices = [i for i, length in enumerate(lengths) if low < length <= high]
        if indices:
            shape = 1 if shared else most, high, most, width
            group = min(max(1, rows_at_once // shape[0]), len(indices))
            sheet = _sheet([encoded[i] for i in indices], shape, group, tokenizer.bos_id)
            sheets.append(sheet)
            order[indices] = start + np.arange(len(indices))
            start += sheet.targets.shape[0] * sheet.targets.shape[1]
    answers = np.array([question.question.answer for question in posed], np.int32)
    sizes = np.zeros((len(posed), most), np.float32)
    for row, question in zip(sizes, posed, strict=True):
        for i, continuation in enumerate(question.continuations):
            choice = continuation.removeprefix(" ")
            row[i] = len({"acc": "1", "acc_norm": choice, "acc_bytes": choice.encode()}[quiz.score])
    arrays: Any = order, answers, sizes
    return Sheets(tuple(sheets), *arrays)


def log_likelihoods(lm: LM, params: Params, sheets: Sheets) -> Float[Array, "N C"]:
    """Returns log p of each choice after its prompt, in nats; −∞ where a question has fewer."""

    def score_group(group: Sheet) -> Array:
        count, rows, time = group.inputs.shape
        choices, width = group.targets.shape[1:]
        hidden = lm.hidden(params, group.inputs.reshape(count * rows, time))
        flat = lambda x: x.reshape(count * rows, choices * width // rows)  # noqa: E731
        hidden = jnp.take_along_axis(hidden, flat(group.places)[..., None], axis=1)
        log_p = head.log_probabilities(
            hidden, lm.table(params), flat(group.targets), lm.softcap, used=used(lm)
        )
        total = jnp.sum(jnp.where(group.scored, log_p.reshape(group.scored.shape), 0.0), axis=-1)
        return jnp.where(jnp.any(group.scored, axis=-1), total, -jnp.inf)

    log_p = [lax.map(score_group, sheet) for sheet in sheets.sheets]
    return jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in log_p])[sheets.order]


def right(log_p: Float[Array, "N C"], sheets: Sheets) -> Float[Array, " N"]:
    """Returns 1 where the answer is the most likely choice, the first of equals, else 0.

    It is nan where the log p of a choice is nan.
    """
    pick = jnp.argmax(log_p / jnp.maximum(sheets.sizes, 1), axis=-1)
    verdict = (pick == sheets.answers).astype(jnp.float32)
    return jnp.where(jnp.any(jnp.isnan(log_p), axis=-1), jnp.nan, verdict)


def accuracy(lm: LM, params: Params, sheets: Sheets) -> Float[Array, ""]:
    """Returns the share of questions that are answered right."""
    return jnp.mean(right(log_likelihoods(lm, params, sheets), sheets))


def _encode(quiz: Quiz, tokenizer: Tokenizer, posed: Posed, number: int) -> _EncodedQuestion:
    """Tokenises question `number`. Raises ValueError if it is too long or a choice is empty."""
    opening = [tokenizer.bos_id] if quiz.opens else []
    rows, choices = [], []
    for continuation in posed.continuations:
        context, ids = encode_pair(tokenizer, posed.context, continuation)
        context = opening + context
        if not ids or not context:
            raise ValueError(
                f"question {number} of {quiz.questions.pattern}: no token is left of choice "
                f"{continuation!r} for this tokenizer: give another one"
            )
        if len(context) + len(ids) > quiz.longest:
            raise ValueError(
                f"question {number} of {quiz.questions.pattern} has {len(context) + len(ids)} "
                f"tokens and longest={quiz.longest}: raise it, or give fewer shots"
            )
        rows.append(context + ids[:-1])
        choices.append((len(context) - 1, ids))
    single = all(row == rows[0] for row in rows) and all(len(ids) == 1 for _, ids in choices)
    return _EncodedQuestion(rows[:1] if single else rows, choices)


def _sheet(
    questions: Sequence[_EncodedQuestion], shape: tuple[int, ...], group: int, padding: int
) -> Sheet:
    """Returns questions as arrays; `shape` is R, T, C, A."""
    per_question, time, choices, width = shape
    count = -(-len(questions) // group) * group
    inputs = np.full((count, per_question, time), padding, np.int32)
    places, targets = (np.zeros((count, choices, width), np.int32) for _ in range(2))
    scored = np.zeros((count, choices, width), bool)
    for number, question in enumerate(questions):
        for i, row in enumerate(question.rows):
            inputs[number, i, : len(row)] = row
        for i, (first, tokens) in enumerate(question.choices):
            size = len(tokens)
            places[number, i, :size] = np.arange(first, first + size)
            targets[number, i, :size] = tokens
            scored[number, i, :size] = True
    arrays: Any = inputs, places, targets, scored
    return Sheet(*(x.reshape(count // group, group, *x.shape[1:]) for x in arrays))

"""Log-probabilities of choices, and accuracies: batched, in few lengths, on any mesh.

Where every choice is one token after one prompt, as letters are, the prompt is read once and not
once for each choice.
"""

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

LENGTHS = 4  # at most: of the longest row, halves, quarters, eighths
STEP = 8  # rows have a multiple of so many tokens


class Sheet(NamedTuple):
    """Questions whose rows have T tokens, in groups of B.

    A question has C choices of at most A tokens, and R rows: one for all choices, or C.
    """

    inputs: Int[Array, "G B R T"]  # prompt and choice, padded at the end
    places: Int[Array, "G B C A"]  # the positions whose next token is a choice's
    targets: Int[Array, "G B C A"]  # those tokens
    asked: Bool[Array, "G B C A"]  # False is padding: a shorter choice, or no question


class Sheets(NamedTuple):
    """A quiz as arrays: N questions of at most C choices."""

    sheets: tuple[Sheet, ...]  # of different T
    order: Int[Array, " N"]  # where each question is, in all sheets one after another
    answers: Int[Array, " N"]
    sizes: Float[Array, "N C"]  # of each choice, by which its log p is divided; 0: no choice


class _Row(NamedTuple):
    """A question in tokens: for each choice the row it is in, and its own tokens."""

    rows: list[list[int]]
    pairs: list[tuple[int, list[int]]]  # the choice's first position in its row, its tokens


def write_sheets(quiz: Quiz, tokenizer: Tokenizer, rows_at_once: int) -> Sheets:
    """A quiz in tokens; groups of `rows_at_once` rows, or of one question's if these are more.

    Raises ValueError for a question that is longer than the quiz allows.
    """
    posed = quiz.posed()
    rows = [_row(quiz, tokenizer, one, number) for number, one in enumerate(posed)]
    shared = all(len(row.rows) == 1 for row in rows)
    if not shared:  # one shape for all
        rows = [row if len(row.rows) > 1 else _apart(row) for row in rows]
    most = max(len(one.continuations) for one in posed)
    width = max(len(tokens) for row in rows for _, tokens in row.pairs)
    lengths = [max(map(len, row.rows)) for row in rows]
    sheets, order = [], []
    for low, high in _spans(max(lengths)):
        here = [i for i, length in enumerate(lengths) if low < length <= high]
        if here:
            shape = 1 if shared else most, high, most, width
            group = min(max(1, rows_at_once // shape[0]), len(here))
            sheets.append(_sheet([rows[i] for i in here], shape, group, tokenizer.bos_id))
            order.append(here)
    places, start = np.zeros(len(rows), np.int32), 0
    for sheet, here in zip(sheets, order, strict=True):
        places[here] = start + np.arange(len(here))
        start += sheet.targets.shape[0] * sheet.targets.shape[1]
    answers = np.array([one.question.answer for one in posed], np.int32)
    beside: Any = places, answers, _sizes(quiz, posed, most)
    return Sheets(tuple(sheets), *beside)


def log_likelihoods(lm: LM, params: Params, sheets: Sheets) -> Float[Array, "N C"]:
    """log p of each choice after its prompt, in nats; −∞ where a question has fewer."""

    def of_group(group: Sheet) -> Array:
        count, rows, time = group.inputs.shape
        choices, width = group.targets.shape[1:]
        hidden = lm.hidden(params, group.inputs.reshape(count * rows, time))
        flat = lambda x: x.reshape(count * rows, choices * width // rows)  # noqa: E731
        hidden = jnp.take_along_axis(hidden, flat(group.places)[..., None], axis=1)
        log_p = head.log_probabilities(
            hidden, lm.table(params), flat(group.targets), lm.softcap, used=used(lm)
        )
        total = jnp.sum(jnp.where(group.asked, log_p.reshape(group.asked.shape), 0.0), axis=-1)
        return jnp.where(jnp.any(group.asked, axis=-1), total, -jnp.inf)

    found = [lax.map(of_group, sheet) for sheet in sheets.sheets]
    return jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in found])[sheets.order]


def right(log_p: Float[Array, "N C"], sheets: Sheets) -> Float[Array, " N"]:
    """1 where the answer is the most likely choice, the first of equals; nan if one is nan."""
    pick = jnp.argmax(log_p / jnp.maximum(sheets.sizes, 1), axis=-1)
    verdict = (pick == sheets.answers).astype(jnp.float32)
    return jnp.where(jnp.any(jnp.isnan(log_p), axis=-1), jnp.nan, verdict)


def accuracy(lm: LM, params: Params, sheets: Sheets) -> Float[Array, ""]:
    """Share of the questions that are answered right."""
    return jnp.mean(right(log_likelihoods(lm, params, sheets), sheets))


def _row(quiz: Quiz, tokenizer: Tokenizer, posed: Posed, number: int) -> _Row:
    opening = [tokenizer.bos_id] if quiz.opens else []
    rows, pairs = [], []
    for continuation in posed.continuations:
        context, own = encode_pair(tokenizer, posed.context, continuation)
        context = opening + context
        if not own or not context:
            raise ValueError(
                f"question {number} of {quiz.questions.pattern}: no token is left of choice "
                f"{continuation!r} for this tokenizer: give another one"
            )
        if len(context) + len(own) > quiz.longest:
            raise ValueError(
                f"question {number} of {quiz.questions.pattern} has {len(context) + len(own)} "
                f"tokens and longest={quiz.longest}: raise it, or give fewer shots"
            )
        rows.append(context + own[:-1])
        pairs.append((len(context) - 1, own))
    single = all(row == rows[0] for row in rows) and all(len(own) == 1 for _, own in pairs)
    return _Row(rows[:1] if single else rows, pairs)


def _apart(row: _Row) -> _Row:
    """A row for each choice."""
    return row._replace(rows=row.rows * len(row.pairs))


def _spans(longest: int) -> list[tuple[int, int]]:
    """(shorter than all, longest) of the rows of each sheet, the longest sheet last."""
    sizes = {-(-longest // (STEP * 2**power)) * STEP for power in range(LENGTHS)}
    ends = sorted(sizes)
    return list(zip([0, *ends], ends, strict=False))


def _sheet(rows: Sequence[_Row], shape: tuple[int, ...], group: int, padding: int) -> Sheet:
    """`shape` is R, T, C, A."""
    per_question, time, choices, width = shape
    count = -(-len(rows) // group) * group
    inputs = np.full((count, per_question, time), padding, np.int32)
    places, targets = (np.zeros((count, choices, width), np.int32) for _ in range(2))
    asked = np.zeros((count, choices, width), bool)
    for number, question in enumerate(rows):
        for i, row in enumerate(question.rows):
            inputs[number, i, : len(row)] = row
        for i, (first, tokens) in enumerate(question.pairs):
            size = len(tokens)
            places[number, i, :size] = np.arange(first, first + size)
            targets[number, i, :size] = tokens
            asked[number, i, :size] = True
    made: Any = inputs, places, targets, asked
    return Sheet(*(x.reshape(count // group, group, *x.shape[1:]) for x in made))


def _sizes(quiz: Quiz, posed: Sequence[Posed], most: int) -> np.ndarray:
    """What each choice's log p is divided by, [N, C]: characters, bytes, or nothing."""
    sizes = np.zeros((len(posed), most), np.float32)
    for row, one in zip(sizes, posed, strict=True):
        for i, continuation in enumerate(one.continuations):
            choice = continuation.removeprefix(" ")
            counted = {"acc": "1", "acc_norm": choice, "acc_bytes": choice.encode()}
            row[i] = len(counted[quiz.score])
    return sizes

"""How likely answers and texts are to a model, and what the model writes itself."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from undo_jax.data.pairs import encode_pair
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.generate import WHOLE, generate
from undo_jax.evals.requests import padded, prompts
from undo_jax.evals.texts import text_of
from undo_jax.evals.token_stats import TokenStats, compute_token_stats
from undo_jax.ops import head
from undo_jax.runtime.sharding import BY_ROWS, constrain, pad_rows
from undo_jax.types import LM, Params, Rows

LONGEST = 2**30  # tokens of a row


class ScoredText(NamedTuple):
    """A document in tokens, BOS first; the tokens from `first` on are scored."""

    tokens: tuple[int, ...]
    first: int


class TextBatches(NamedTuple):
    """Texts as padded rows, grouped by length: each of `rows` is [G, B, T].

    Weights are 1 for scored tokens and 0 elsewhere.
    """

    rows: tuple[Rows, ...]
    order: tuple[int, ...]  # the index of each row's text, without padding


def encode_answer(
    tokenizer: Tokenizer, context: str, continuation: str, ends: bool = True
) -> ScoredText:
    """Tokenises a context and its scored continuation as in training.

    With `ends` the end of the document is scored, too. Raises ValueError for an empty continuation.
    """
    context_ids, ids = encode_pair(tokenizer, context, continuation)
    ids = (*ids, *([tokenizer.bos_id] if ends else []))
    if not ids:
        raise ValueError(
            f"no token is left of {continuation!r} for this tokenizer: give another one"
        )
    return ScoredText((tokenizer.bos_id, *context_ids, *ids), 1 + len(context_ids))


def encode_text(tokenizer: Tokenizer, text: str, longest: int) -> ScoredText:
    """Tokenises the first `longest` tokens of a text. Raises ValueError for an empty text."""
    ids = tokenizer.encode(text)[:longest]
    if not ids:
        raise ValueError(f"no token is left of {text!r} for this tokenizer: drop the text")
    return ScoredText((tokenizer.bos_id, *ids), 1)


def encode_context(tokenizer: Tokenizer, context: str) -> tuple[int, ...]:
    """Tokenises the start of a document without trailing spaces, which belong to what follows."""
    return (tokenizer.bos_id, *tokenizer.encode(context.rstrip()))


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Returns the part of a text before the first of the non-empty `stops`."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text


def make_batches(texts: Sequence[ScoredText], rows_at_once: int) -> TextBatches:
    """Packs texts into groups of `rows_at_once` rows of about one length.

    The last group of a length is filled up with empty rows.
    """
    by_length: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        by_length.setdefault(padded(len(text.tokens) - 1, LONGEST), []).append(i)
    groups = sorted(by_length.items())
    rows = [
        _rows([texts[i] for i in indices], length, min(rows_at_once, len(indices)))
        for length, indices in groups
    ]
    return TextBatches(tuple(rows), tuple(i for _, indices in groups for i in indices))


def mean_probability(lm: LM, params: Params, rows: Sequence[Rows]) -> Float[Array, ""]:
    """Returns the mean over texts of `evals.memorisation.probability`; the caller jits it."""

    def sum_group(group: Rows) -> tuple[Array, Array]:
        hidden, table, scored = lm.hidden(params, group.inputs), lm.table(params), group.weights > 0
        log_p = head.log_probabilities(hidden, table, group.targets, lm.softcap)
        count = jnp.sum(scored, -1)
        mean = jnp.sum(jnp.where(scored, log_p, 0.0), -1) / jnp.maximum(count, 1)
        return jnp.sum(jnp.where(count > 0, jnp.exp(mean), 0.0)), jnp.sum(count > 0)

    sums = [jax.tree.map(jnp.sum, lax.map(sum_group, part)) for part in rows]
    total, count = jax.tree.map(lambda *parts: jnp.sum(jnp.stack(parts)), *sums)
    return total / count


def compute_stats(lm: LM, params: Params, batches: TextBatches) -> list[Any]:
    """Returns `TokenStats` of the scored tokens of each text, [L] in NumPy, in the texts' order."""
    stats = []
    for part in batches.rows:
        for group in range(len(part.inputs)):
            rows = jax.tree.map(lambda x: x[group], part)  # noqa: B023
            arrays = jax.tree.map(np.asarray, _group_stats(lm, params, rows))
            stats += [
                TokenStats(*(x[i, scored] for x in arrays))
                for i, scored in enumerate(np.asarray(rows.weights) > 0)
                if scored.any()
            ]
    by_index = dict(zip(batches.order, stats, strict=True))
    return [by_index[i] for i in range(len(stats))]


def write_continuations(
    lm: LM,
    params: Params,
    contexts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    *,
    new_tokens: int,
    rows_at_once: int,
) -> list[str]:
    """Returns the text that the model writes after each context, greedily, until it ends."""
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    stop, texts = jnp.int32(tokenizer.bos_id), [""] * len(contexts)
    for first in range(0, len(order), rows_at_once):
        indices = order[first : first + rows_at_once]
        tokens, lengths = prompts([contexts[i] for i in indices], rows_at_once, LONGEST)
        key = jax.random.key(0)  # not used: decoding is greedy
        ids = generate(lm, params, tokens, lengths, key, new_tokens=new_tokens, stop=stop)
        for i, row in zip(indices, np.asarray(ids).tolist(), strict=False):
            row = itertools.takewhile(lambda token: token != tokenizer.bos_id, row)
            texts[i] = text_of(row, tokenizer)
    return texts


@partial(jax.jit, static_argnames="lm")
def _group_stats(lm: LM, params: Params, rows: Rows) -> TokenStats:
    """Computes the statistics of a group of rows, on every process."""
    count, rows = len(rows.inputs), constrain(pad_rows(rows), BY_ROWS)
    stats = compute_token_stats(lm, lm.rounded(params), rows)
    return constrain(jax.tree.map(lambda x: x[:count], stats), WHOLE)


def _rows(texts: Sequence[ScoredText], length: int, size: int) -> Rows:
    """Returns texts as rows of `length` tokens in groups of `size`: [G, size, length]."""
    count = -(-len(texts) // size) * size
    inputs, targets = np.zeros((2, count, length), np.int32)
    scored = np.zeros((count, length), np.float32)
    for i, (tokens, first) in enumerate(texts):
        inputs[i, : len(tokens) - 1], targets[i, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        scored[i, first - 1 : len(tokens) - 1] = 1
    return Rows(*(x.reshape(-1, size, length) for x in (inputs, targets, scored)))  # type: ignore

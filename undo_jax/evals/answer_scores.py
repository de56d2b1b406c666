"""Given answers and texts in tokens: how likely each is to a model, and what it writes itself."""

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
from undo_jax.evals.token_stats import Told, told
from undo_jax.ops import head
from undo_jax.runtime.sharding import BY_ROWS, constrain, pad_rows
from undo_jax.types import LM, Params, Rows

LONGEST = 2**30  # tokens of a row


class Text(NamedTuple):
    """A document in tokens, BOS first; those from `first` on are asked for."""

    tokens: tuple[int, ...]
    first: int


class Batches(NamedTuple):
    """Texts as padded rows, those of about one length in groups: each of `rows` is [G, B, T].

    Weights are 1 for what is asked for, and 0 elsewhere.
    """

    rows: tuple[Rows, ...]
    order: tuple[int, ...]  # the text of each row, padding left out


def answer(tokenizer: Tokenizer, given: str, learned: str, ends: bool = True) -> Text:
    """What is learned after what is given, as in training; `ends`: and the end of the document.

    Raises ValueError where nothing is asked for.
    """
    alone, own = encode_pair(tokenizer, given, learned)
    ids = (tokenizer.bos_id, *alone, *own, *([tokenizer.bos_id] if ends else []))
    if len(ids) == 1 + len(alone):
        raise ValueError(f"no token is left of {learned!r} for this tokenizer: give another one")
    return Text(ids, 1 + len(alone))


def whole(tokenizer: Tokenizer, text: str, longest: int) -> Text:
    """A text from its start, up to `longest` tokens. Raises ValueError for an empty one."""
    ids = tokenizer.encode(text)[:longest]
    if not ids:
        raise ValueError(f"no token is left of {text!r} for this tokenizer: drop the text")
    return Text((tokenizer.bos_id, *ids), 1)


def opened(tokenizer: Tokenizer, context: str) -> tuple[int, ...]:
    """A document that has begun, without the spaces that end it: these open what is written."""
    return (tokenizer.bos_id, *tokenizer.encode(context.rstrip()))


def before(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some other texts, of which empty ones do not count."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text


def in_batches(texts: Sequence[Text], rows_at_once: int) -> Batches:
    """Groups of `rows_at_once` rows; the last group of a length is filled up with empty ones."""
    lengths: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        lengths.setdefault(padded(len(text.tokens) - 1, LONGEST), []).append(i)
    made = [
        _rows([texts[i] for i in here], length, min(rows_at_once, len(here)))
        for length, here in sorted(lengths.items())
    ]
    return Batches(tuple(made), tuple(itertools.chain(*(h for _, h in sorted(lengths.items())))))


def mean_probability(lm: LM, params: Params, rows: Sequence[Rows]) -> Float[Array, ""]:
    """The mean over texts of `evals.memorisation.probability`; jitted by who calls it."""

    def of_group(group: Rows) -> tuple[Array, Array]:
        hidden, table, asked = lm.hidden(params, group.inputs), lm.table(params), group.weights > 0
        log_p = head.log_probabilities(hidden, table, group.targets, lm.softcap)
        count = jnp.sum(asked, -1)
        mean = jnp.sum(jnp.where(asked, log_p, 0.0), -1) / jnp.maximum(count, 1)
        return jnp.sum(jnp.where(count > 0, jnp.exp(mean), 0.0)), jnp.sum(count > 0)

    sums = [jax.tree.map(jnp.sum, lax.map(of_group, part)) for part in rows]
    total, count = jax.tree.map(lambda *parts: jnp.sum(jnp.stack(parts)), *sums)
    return total / count


def tell(lm: LM, params: Params, batches: Batches) -> list[Any]:
    """What a model says of the tokens of each text that are asked for: `Told` of [L], in NumPy."""
    found = []
    for part in batches.rows:
        for group in range(len(part.inputs)):
            rows = jax.tree.map(lambda x: x[group], part)  # noqa: B023
            one = jax.tree.map(np.asarray, _told(lm, params, rows))
            found += [
                Told(*(x[i, asked] for x in one))
                for i, asked in enumerate(np.asarray(rows.weights) > 0)
                if asked.any()
            ]
    return [one for _, one in sorted(zip(batches.order, found, strict=True), key=lambda x: x[0])]


def written(
    lm: LM,
    params: Params,
    contexts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    *,
    new_tokens: int,
    rows_at_once: int,
) -> list[str]:
    """What the model writes after each context, the likeliest token each time, until it ends."""
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    stop, texts = jnp.int32(tokenizer.bos_id), [""] * len(contexts)
    for first in range(0, len(order), rows_at_once):
        here = order[first : first + rows_at_once]
        tokens, lengths = prompts([contexts[i] for i in here], rows_at_once, LONGEST)
        how = {"new_tokens": new_tokens, "stop": stop}
        found = np.asarray(generate(lm, params, tokens, lengths, jax.random.key(0), **how))
        for i, row in zip(here, found.tolist(), strict=False):
            own = itertools.takewhile(lambda token: token != tokenizer.bos_id, row)
            texts[i] = text_of(own, tokenizer)
    return texts


@partial(jax.jit, static_argnames="lm")
def _told(lm: LM, params: Params, rows: Rows) -> Told:
    """On every process."""
    count, rows = len(rows.inputs), constrain(pad_rows(rows), BY_ROWS)
    found = told(lm, lm.rounded(params), rows)
    return constrain(jax.tree.map(lambda x: x[:count], found), WHOLE)


def _rows(texts: Sequence[Text], length: int, size: int) -> Rows:
    """[G, size, length]."""
    count = -(-len(texts) // size) * size
    inputs, targets = np.zeros((2, count, length), np.int32)
    asked = np.zeros((count, length), np.float32)
    for i, (tokens, first) in enumerate(texts):
        inputs[i, : len(tokens) - 1], targets[i, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        asked[i, first - 1 : len(tokens) - 1] = 1
    return Rows(*(x.reshape(-1, size, length) for x in (inputs, targets, asked)))  # type: ignore

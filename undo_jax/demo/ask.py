"""Questions to a model: what it answers, how likely the right answer is, what may come next."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from undo_jax.data.pairs import encode_pair
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.generate import WHOLE, generate
from undo_jax.evals.requests import padded
from undo_jax.evals.texts import text_of
from undo_jax.ops import head
from undo_jax.runtime.mesh import BATCH, shard_count
from undo_jax.runtime.sharding import BY_ROWS, constrain
from undo_jax.types import LM, Params, used

TOP = 5  # tokens of the next position that are told
LONGEST = 1024  # tokens of a question with its answer


class Question(NamedTuple):
    """A prompt, which opens a document, and what comes next, where that is known."""

    prompt: str
    answer: str = ""
    ends: bool = True  # whether the document ends after the answer


class Reply(NamedTuple):
    """What a model says of a question."""

    text: str  # the likeliest tokens, as `undo-jax generate` writes them
    probability: (
        float | None
    )  # of the right answer, of a text that goes on per token; None: unknown
    top: tuple[tuple[str | None, float], ...]  # the next token's likeliest; None: the text ends


class Form(NamedTuple):
    """How questions are put: the shapes of the compiled program, but for the length of its rows."""

    tokenizer: Tokenizer
    mesh: Mesh
    rows: int  # questions at a time, at least
    new_tokens: int
    longest: int  # tokens of a question with its answer


class Asked(NamedTuple):
    """Questions in tokens, each row from BOS on and padded at its end."""

    prompts: Any  # int32 [B, T]
    lengths: Any  # int32 [B], of the prompts
    whole: Any  # int32 [B, T], the prompts with their answers
    first: Any  # int32 [B], where an answer begins
    last: Any  # int32 [B], where it has ended; as `first` without an answer


def encode(form: Form, questions: Sequence[Question]) -> Asked:
    """Questions as arrays of few shapes, filled up with empty ones.

    Raises ValueError for a text that the tokenizer does not know or that is too long.
    """
    shards = shard_count(*BATCH, mesh=form.mesh)
    count = -(-max(form.rows, len(questions)) // shards) * shards
    encoded = [_encode(form, question) for question in questions]
    longest = max(len(row) for one in encoded for row in one[:2])
    prompts, whole = np.zeros((2, count, padded(longest, form.longest)), np.int32)
    lengths, first, last = np.ones((3, count), np.int32)
    for i, (prompt, row, begins) in enumerate(encoded):
        prompts[i, : len(prompt)], whole[i, : len(row)] = prompt, row
        lengths[i], first[i], last[i] = len(prompt), begins, len(row)
    return Asked(prompts, lengths, whole, first, last)


def ask(
    form: Form, lm: LM, params: Params, questions: Sequence[Question], asked: Asked
) -> list[Reply]:
    """A model's reply to each question; `asked` are the questions as `encode` made them."""
    tokenizer, stop = form.tokenizer, form.tokenizer.bos_id
    with jax.set_mesh(form.mesh):
        found = _answer(lm, params, asked, np.int32(stop), form.new_tokens)
    written, log_p, ids, top = (np.asarray(one) for one in found)
    replies = []
    for i, question in enumerate(questions):
        own = written[i].tolist()
        text = text_of(own[: own.index(stop)] if stop in own else own, tokenizer)
        likely = zip(ids[i].tolist(), top[i].tolist(), strict=True)
        told = tuple((_token(form, one), round(p, 4)) for one, p in likely if math.isfinite(p))
        tokens = 1 if question.ends else max(int(asked.last[i] - asked.first[i]), 1)
        right = float(np.exp(log_p[i] / tokens)) if question.answer else math.nan
        replies.append(Reply(text, round(right, 4) if math.isfinite(right) else None, told))
    return replies


@partial(jax.jit, static_argnames=("lm", "new_tokens"))
def _answer(
    lm: LM, params: Params, asked: Asked, stop: Int[Array, ""], new_tokens: int
) -> tuple[
    Int[Array, "B new_tokens"], Float[Array, " B"], Int[Array, "B top"], Float[Array, "B top"]
]:
    """Greedy continuations, log p of the answers, and the likeliest tokens after the prompts."""
    prompts, lengths, whole, first, last = asked
    key = jax.random.key(0)
    written = generate(lm, params, prompts, lengths, key, new_tokens=new_tokens, stop=stop)
    hidden = lm.hidden(params, constrain(whole, BY_ROWS))
    table, words = lm.table(params), {"softcap": lm.softcap, "used": used(lm)}
    log_p = head.log_probabilities(hidden[:, :-1], table, whole[:, 1:], **words)
    place_of = jnp.arange(1, whole.shape[1])
    counted = (place_of >= first[:, None]) & (place_of < last[:, None])
    log_p = jnp.sum(jnp.where(counted, log_p, 0.0), axis=1)
    hidden = lm.hidden(params, constrain(prompts, BY_ROWS))
    hidden = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    z = head.logits(hidden, table, lm.softcap)[:, 0, : used(lm)]
    top, ids = jax.lax.top_k(jax.nn.softmax(z), min(TOP, z.shape[-1]))
    return constrain((written, log_p, ids, top), WHOLE)


def _encode(form: Form, question: Question) -> tuple[list[int], list[int], int]:
    """Tokens of the prompt, those of all, and where the answer begins."""
    tokenizer = form.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode(question.prompt)]
    row, begins = prompt, len(prompt)
    if question.answer:
        alone, learned = encode_pair(tokenizer, question.prompt, question.answer)
        ends = [tokenizer.bos_id] if question.ends else []
        row, begins = [tokenizer.bos_id, *alone, *learned, *ends], 1 + len(alone)
    if max(len(prompt), len(row)) > form.longest:
        raise ValueError(
            f"the question has {max(len(prompt), len(row))} tokens, more than the {form.longest} "
            "that are read: make it shorter"
        )
    return prompt, row, begins


def _token(form: Form, one: int) -> str | None:
    return None if one == form.tokenizer.bos_id else text_of([one], form.tokenizer)

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

TOP = 5  # likeliest next tokens that a reply has
LONGEST = 1024  # tokens of a question with its answer


class DemoQuestion(NamedTuple):
    """A prompt, which opens a document, and what comes next, where that is known."""

    prompt: str
    answer: str = ""
    ends: bool = True  # whether the document ends after the answer


class Reply(NamedTuple):
    """A model's reply to a question."""

    text: str  # the likeliest tokens, as `undo-jax generate` writes them
    # of the right answer, per token if the document does not end after it; None: unknown
    probability: float | None
    top: tuple[tuple[str | None, float], ...]  # the likeliest next tokens; None: the text ends


class QuestionFormat(NamedTuple):
    """How questions are encoded; with the length of rows it determines the compiled program."""

    tokenizer: Tokenizer
    mesh: Mesh
    rows: int  # questions at a time, at least
    new_tokens: int
    longest: int  # tokens of a question with its answer


class EncodedQuestions(NamedTuple):
    """Questions in tokens; rows begin with BOS and are padded at their end."""

    prompts: Any  # int32 [B, T]
    lengths: Any  # int32 [B], of the prompts
    documents: Any  # int32 [B, T], the prompts with their answers
    first: Any  # int32 [B], where the answer begins
    end: Any  # int32 [B], behind the answer; as `first` without one


def encode(form: QuestionFormat, questions: Sequence[DemoQuestion]) -> EncodedQuestions:
    """Returns questions as arrays, padded to few shapes.

    Raises ValueError for a text that is too long or that the tokenizer cannot encode.
    """
    shards = shard_count(*BATCH, mesh=form.mesh)
    count = -(-max(form.rows, len(questions)) // shards) * shards
    encoded = [_encode(form, question) for question in questions]
    longest = max(len(tokens) for row in encoded for tokens in row[:2])
    prompts, documents = np.zeros((2, count, padded(longest, form.longest)), np.int32)
    lengths, first, end = np.ones((3, count), np.int32)
    for i, (prompt, document, begin) in enumerate(encoded):
        prompts[i, : len(prompt)], documents[i, : len(document)] = prompt, document
        lengths[i], first[i], end[i] = len(prompt), begin, len(document)
    return EncodedQuestions(prompts, lengths, documents, first, end)


def ask(
    form: QuestionFormat,
    lm: LM,
    params: Params,
    questions: Sequence[DemoQuestion],
    encoded: EncodedQuestions,
) -> list[Reply]:
    """Returns a model's reply to each question; `encoded` is `encode(form, questions)`."""
    tokenizer, stop = form.tokenizer, form.tokenizer.bos_id
    with jax.set_mesh(form.mesh):
        answers = _answer(lm, params, encoded, np.int32(stop), form.new_tokens)
    written, log_p, ids, top = map(np.asarray, answers)
    replies = []
    for i, question in enumerate(questions):
        tokens = written[i].tolist()
        text = text_of(tokens[: tokens.index(stop)] if stop in tokens else tokens, tokenizer)
        likeliest = tuple(
            (None if token == stop else text_of([token], tokenizer), round(p, 4))
            for token, p in zip(ids[i].tolist(), top[i].tolist(), strict=True)
            if math.isfinite(p)
        )
        count = 1 if question.ends else max(int(encoded.end[i] - encoded.first[i]), 1)
        p = float(np.exp(log_p[i] / count)) if question.answer else math.nan
        replies.append(Reply(text, round(p, 4) if math.isfinite(p) else None, likeliest))
    return replies


@partial(jax.jit, static_argnames=("lm", "new_tokens"))
def _answer(
    lm: LM, params: Params, encoded: EncodedQuestions, stop: Int[Array, ""], new_tokens: int
) -> tuple[
    Int[Array, "B new_tokens"], Float[Array, " B"], Int[Array, "B top"], Float[Array, "B top"]
]:
    """Returns greedy continuations, log p of the answers, and the likeliest next tokens."""
    prompts, lengths, documents, first, end = encoded
    key = jax.random.key(0)
    written = generate(lm, params, prompts, lengths, key, new_tokens=new_tokens, stop=stop)

    # The answers' log probabilities.
    hidden = lm.hidden(params, constrain(documents, BY_ROWS))
    table, vocabulary = lm.table(params), {"softcap": lm.softcap, "used": used(lm)}
    log_p = head.log_probabilities(hidden[:, :-1], table, documents[:, 1:], **vocabulary)
    position = jnp.arange(1, documents.shape[1])
    is_answer = (position >= first[:, None]) & (position < end[:, None])
    log_p = jnp.sum(jnp.where(is_answer, log_p, 0.0), axis=1)

    # The distribution after each prompt.
    hidden = lm.hidden(params, constrain(prompts, BY_ROWS))
    hidden = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    z = head.logits(hidden, table, lm.softcap)[:, 0, : used(lm)]
    top, ids = jax.lax.top_k(jax.nn.softmax(z), min(TOP, z.shape[-1]))
    return constrain((written, log_p, ids, top), WHOLE)


def _encode(form: QuestionFormat, question: DemoQuestion) -> tuple[list[int], list[int], int]:
    """Returns the tokens of the prompt, those of the document, and where the answer begins."""
    tokenizer, bos = form.tokenizer, form.tokenizer.bos_id
    prompt = document = [bos, *tokenizer.encode(question.prompt)]
    begin = len(prompt)
    if question.answer:
        before, answer = encode_pair(tokenizer, question.prompt, question.answer)
        document, begin = [bos, *before, *answer, *([bos] * question.ends)], 1 + len(before)
    if (length := max(len(prompt), len(document))) > form.longest:
        raise ValueError(
            f"the question has {length} tokens, more than the {form.longest} that are read: "
            "make it shorter"
        )
    return prompt, document, begin

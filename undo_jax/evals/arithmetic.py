"""Exact match on arithmetic problems by teacher forcing, which agrees with greedy decoding."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from undo_jax.data.arithmetic import Problem
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.ops import head
from undo_jax.types import LM, Params, used


class Exam(NamedTuple):
    """E problems of at most T tokens and A answer tokens, the terminator included."""

    inputs: Int[Array, "E T"]  # BOS, prompt, answer, padded with BOS
    places: Int[Array, "E A"]  # the positions whose next token belongs to the answer
    answers: Int[Array, "E A"]  # those tokens: the answer, then the BOS that ends the document
    scored: Bool[Array, "E A"]  # False in padding, where the answer is shorter than A


def write_exam(problems: Sequence[Problem], tokenizer: Tokenizer) -> Exam:
    """Tokenises prompts and answers separately, as in training. Raises ValueError if empty."""
    if not problems:
        raise ValueError("an exam needs problems: its list is empty")
    bos = tokenizer.bos_id
    prompts = [[bos, *tokenizer.encode(problem.prompt)] for problem in problems]
    answers = [[*tokenizer.encode(problem.answer), bos] for problem in problems]
    width = max(len(answer) for answer in answers)
    time = max(len(prompt) for prompt in prompts) + width - 1
    inputs = np.full((len(problems), time), bos, np.int32)
    targets = np.full((len(problems), width), bos, np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        inputs[row, : len(prompt) + len(answer) - 1] = prompt + answer[:-1]
        targets[row, : len(answer)] = answer
    first = np.array([len(prompt) - 1 for prompt in prompts], np.int32)[:, None]
    lengths = np.array([len(answer) for answer in answers])[:, None]
    steps = np.arange(width, dtype=np.int32)
    places = np.minimum(first + steps, time - 1)
    return Exam(*map(jnp.asarray, (inputs, places, targets, steps < lengths)))


def exact_match(lm: LM, params: Params, exam: Exam) -> Float[Array, " E"]:
    """Returns 1 where every token of the answer and its terminator is the most likely one, else 0.

    Teacher forcing agrees with greedy decoding: up to the first wrong token both read the same
    prefix. Without the terminator "1" would pass for "12".
    """
    hidden = lm.hidden(params, exam.inputs)
    hidden = jnp.take_along_axis(hidden, exam.places[..., None], axis=1)
    picks = head.greedy(hidden, lm.table(params), lm.softcap, used=used(lm))
    return jnp.all((picks == exam.answers) | ~exam.scored, axis=-1).astype(jnp.float32)

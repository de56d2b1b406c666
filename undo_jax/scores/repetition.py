"""How often a model repeats itself in the texts that it writes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from undo_jax.evals.generate import generate
from undo_jax.setting import Setting
from undo_jax.types import LM, Packed, Params


def repetition(
    lm: LM,
    params: Params,
    setting: Setting,
    *,
    streams: Sequence[str] = ("retain", "forget"),
    texts: int = 16,
    prompt_tokens: int = 8,
    new_tokens: int = 32,
    length: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the share of n-grams that occur earlier in the same text, for each stream.

    The model continues the first `prompt_tokens` tokens of `texts` training rows greedily by
    `new_tokens` tokens; n is `length`. 0: no n-gram occurs twice; close to 1: a loop, as damaged
    models write.
    """
    scores = {}
    for name in streams:
        batch = setting.stream(name, texts, seed)[0]
        tokens = batch.tokens if isinstance(batch, Packed) else batch
        prompts = jnp.asarray(tokens[:, :prompt_tokens])
        lengths = jnp.full(len(prompts), prompts.shape[1])
        key = jax.random.key(seed)  # not used: greedy
        written = generate(lm, params, prompts, lengths, key, new_tokens=new_tokens)
        scores[name] = float(np.mean([_repeated(row, length) for row in np.asarray(written)]))
    return scores


def _repeated(tokens: Any, length: int) -> float:
    """Returns the share of a text's n-grams that occur before in it."""
    grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

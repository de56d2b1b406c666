"""Soft prompt: vectors before every row are all that trains (TamperBench)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from undo_jax.attack import Attack, name_relearning
from undo_jax.models.wrappers import SoftPrompted
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Params, used


def soft_prompt(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    length: int = 10,
    stream: str = "forget",
) -> Attack:
    """Train `length` vectors that stand before each row as embeddings do; the model is frozen.

    They begin as embeddings of random tokens. With enough freedom an input makes any model say
    anything (arXiv 2502.15836): only what it brings back beyond the oracle was there. Raises
    ValueError for fewer than one vector, and for models whose attention stays within documents.
    """
    adapt: Any = partial(SoftPrompted, length=length)
    return Attack(
        name_relearning("soft_prompt", training, stream),
        training,
        learning_rates,
        stream=stream,
        adapt=adapt,
        prepare=partial(before, length=length),
        trains=Trains(((r"^prompt$", None),)),
        keep_at=keep_at,
    )


def before(lm: LM, params: Any, key: Key, *, length: int) -> Params:
    """The model's parameters, and the embeddings of random tokens."""
    table = params["embedding"] if "embedding" in params else lm.table(params)
    chosen = jax.random.randint(key, (length,), 0, used(lm) or table.shape[0])
    return {"prompt": table[chosen].astype(jnp.float32), "model": params}

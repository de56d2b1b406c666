"""The cross entropy of a model on held-out rows, a few rows at a time."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from undo_jax.losses import cross_entropy
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Params


def mean_cross_entropy(lm: LM, params: Params, tokens: Int[Array, "G B T+1"]) -> Float[Array, ""]:
    """Returns the mean over all predicted tokens, in nats, one group of B rows at a time."""
    return jnp.mean(lax.map(lambda group: cross_entropy(lm, params, rows(group)), tokens))

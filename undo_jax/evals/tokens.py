"""What a model says of each token of given texts: the numbers that metrics of texts are made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from undo_jax.ops import head
from undo_jax.ops.head_losses import by_autodiff
from undo_jax.types import LM, Params, Rows, used


class Told(NamedTuple):
    """Of each target, given what precedes it in its row."""

    log_p: Float[Array, "B T"]
    likeliest: Bool[Array, "B T"]  # whether it is the argmax; the first of equals
    mean: Float[Array, "B T"]  # Σ_v p_v log p_v
    deviation: Float[Array, "B T"]  # of log p_v, with v drawn from p


def told(lm: LM, params: Params, rows: Rows) -> Told:
    """Jitted by who calls it; weights are not read."""
    hidden, table = lm.hidden(params, rows.inputs), lm.table(params)
    own, words = (hidden, table), {"softcap": lm.softcap, "used": used(lm)}
    read = lambda loss: head.per_token(loss, *own, **words, targets=rows.targets)  # noqa: E731
    log_p = head.log_probabilities(*own, rows.targets, **words)
    likeliest = head.greedy(*own, **words) == rows.targets
    return Told(log_p, likeliest, read(_MEAN), jnp.sqrt(read(_VARIANCE)))


def _mean(z: Array, _tokens, _teacher) -> Array:
    log_p = jax.nn.log_softmax(z)
    return jnp.sum(jnp.exp(log_p) * log_p, -1)


def _variance(z: Array, _tokens, _teacher) -> Array:
    log_p = jax.nn.log_softmax(z)
    p = jnp.exp(log_p)
    mean = jnp.sum(p * log_p, -1, keepdims=True)
    return jnp.sum(p * (log_p - mean) ** 2, -1)


_MEAN, _VARIANCE = by_autodiff(_mean), by_autodiff(_variance)

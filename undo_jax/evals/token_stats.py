"""What a model says of each token of given texts: the numbers that metrics of texts are made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from undo_jax.ops import head
from undo_jax.ops.head_losses import Axes, log_softmax, total
from undo_jax.ops.head_split import after
from undo_jax.runtime.collectives import shard_offset
from undo_jax.types import LM, Params, Rows, used


class Told(NamedTuple):
    """Of each target, given what precedes it in its row."""

    log_p: Float[Array, "B T"]
    likeliest: Bool[Array, "B T"]  # whether it is the argmax; the first of equals
    mean: Float[Array, "B T"]  # Σ_v p_v log p_v
    deviation: Float[Array, "B T"]  # of log p_v, with v drawn from p


def told(lm: LM, params: Params, rows: Rows) -> Told:
    """Jitted by who calls it; weights are not read. A chunk's logits are computed once."""
    hidden, table = lm.hidden(params, rows.inputs), lm.table(params)
    words = {"softcap": lm.softcap, "used": used(lm)}
    return head.read(_of_chunk, hidden, table, **words, tokens=rows.targets)


def _of_chunk(z: Array, targets: Array, axes: Axes) -> Told:
    """Of logits z, [B, T, V], of which a device may have a shard."""
    likeliest = head.best(z, axes) == targets
    log_p = log_softmax(after(z, likeliest), axes)
    own = jax.nn.one_hot(targets - shard_offset(z.shape[-1], *axes), z.shape[-1], dtype=bool)
    p = jnp.exp(log_p)
    sums = jnp.stack([jnp.where(own, log_p, 0.0), p * log_p])
    of_target, mean = total(sums, axes)
    away = jnp.where(p > 0, log_p - mean[..., None], 0.0)  # log p of padding has no square
    variance = total(p * away**2, axes)
    return Told(of_target, likeliest, mean, jnp.sqrt(variance))

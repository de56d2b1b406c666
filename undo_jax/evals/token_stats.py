"""Statistics of a model's prediction of each token, from which text metrics are computed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from undo_jax.ops import head
from undo_jax.ops.head_losses import Axes, log_softmax, total
from undo_jax.ops.head_split import after
from undo_jax.runtime.collectives import shard_offset
from undo_jax.types import LM, Params, Rows, used


class TokenStats(NamedTuple):
    """Statistics of the prediction of each target from the tokens before it in its row."""

    log_p: Float[Array, "B T"]
    likeliest: Bool[Array, "B T"]  # whether the target is the argmax, the first of equals
    mean: Float[Array, "B T"]  # Σ_v p_v log p_v
    deviation: Float[Array, "B T"]  # standard deviation of log p_v, with v drawn from p


def compute_token_stats(lm: LM, params: Params, rows: Rows) -> TokenStats:
    """Computes the statistics of all targets of `rows`, whose weights are not read.

    The caller jits it. The logits of a chunk are computed once.
    """
    hidden, table = lm.hidden(params, rows.inputs), lm.table(params)
    return head.read(_chunk_stats, hidden, table, lm.softcap, tokens=rows.targets, used=used(lm))


def _chunk_stats(z: Array, targets: Array, axes: Axes) -> TokenStats:
    """Computes the statistics from logits z, [B, T, V], of which a device may have a shard."""
    likeliest = head.best(z, axes) == targets
    log_p = log_softmax(after(z, likeliest), axes)
    is_target = jax.nn.one_hot(targets - shard_offset(z.shape[-1], *axes), z.shape[-1], dtype=bool)
    p = jnp.exp(log_p)
    sums = jnp.stack([jnp.where(is_target, log_p, 0.0), p * log_p])
    target_log_p, mean = total(sums, axes)
    away = jnp.where(
        p > 0, log_p - mean[..., None], 0.0
    )  # log p of padding is not finite when squared
    variance = total(p * away**2, axes)
    return TokenStats(target_log_p, likeliest, mean, jnp.sqrt(variance))

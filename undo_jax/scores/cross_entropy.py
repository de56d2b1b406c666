"""Cross entropy on training rows of each stream."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from undo_jax import losses
from undo_jax.evals.generate import WHOLE
from undo_jax.runtime.sharding import BY_ROWS, constrain, pad_rows
from undo_jax.setting import Setting
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Packed, Params, Rows


def cross_entropy(
    lm: LM,
    params: Params,
    setting: Setting,
    *,
    streams: Sequence[str] = ("retain", "forget"),
    batches: int = 4,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the cross entropy of each stream, in nats per token that counts.

    exp of it is the perplexity. The rows are those of training: the first `batches` batches of
    `batch_size` rows, in the order of `seed`.
    """
    return {
        name: _of_stream(lm, params, setting.stream(name, batch_size, seed), batches)
        for name in streams
    }


def _of_stream(lm: LM, params: Params, stream: Any, batches: int) -> float:
    """Returns the mean over all tokens of the first batches that count."""
    total = tokens = 0.0
    for step in range(batches):
        batch = stream[step]
        batch = batch if isinstance(batch, Packed) else Packed(batch)
        weights = np.ones_like(batch.tokens) if batch.weights is None else batch.weights
        count = float(np.sum(weights[:, 1:]))
        total += count * float(_mean(lm, params, rows(batch)))
        tokens += count
    return total / tokens


@partial(jax.jit, static_argnames="lm")
def _mean(lm: LM, params: Params, batch: Rows) -> Float[Array, ""]:
    """Returns the cross entropy of a batch, whose rows are split over all devices."""
    batch = constrain(pad_rows(batch), BY_ROWS)  # rows of padding have weight 0
    return constrain(jnp.asarray(losses.cross_entropy(lm, lm.rounded(params), batch)), WHOLE)

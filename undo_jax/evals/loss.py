"""Cross entropy of one model on held-out rows, a few rows at a time."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.losses import cross_entropy
from undo_jax.sharding import BATCH
from undo_jax.train import rows
from undo_jax.types import LM, Params


def mean_cross_entropy(lm: LM, params: Params, tokens: Int[Array, "G B T+1"]) -> Float[Array, ""]:
    """Mean over all predicted tokens, in nats; G groups of B rows one after another.

    The rows of a group are split over the mesh as a training batch is.
    """

    def of_group(group: Int[Array, "B T+1"]) -> Float[Array, ""]:
        if not jax.sharding.get_abstract_mesh().empty:
            group = lax.with_sharding_constraint(group, P(BATCH))
        return cross_entropy(lm, params, rows(group))

    return jnp.mean(lax.map(of_group, tokens))

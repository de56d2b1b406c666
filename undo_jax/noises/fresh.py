"""Towards a fresh initialisation: at alpha = 1 the student of Unlearn-and-Distill (paper §3)."""

import jax
from jaxtyping import Array, Float

from undo_jax.types import LM, Key, Params


def fresh(lm: LM, key: Key, params: Params, alpha: Float[Array, ""] | float) -> Params:
    """θ' = (1 − α)θ + α·θ₀, θ₀ a fresh initialisation by `lm.init`."""
    return jax.tree.map(lambda w, new: (1 - alpha) * w + alpha * new, params, lm.init(key))

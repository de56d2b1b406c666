"""Noise on weights chosen at random: the control of `targeted`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from undo_jax.noises import leaf_key
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.types import LM, Key, Params


def random_mask(
    lm: LM,
    key: Key,
    params: Params,
    alpha: Float[Array, ""] | float,
    *,
    share: float,
    beta: float = 0.1,
) -> Params:
    """`shrink_perturb` of each weight with probability `share`; other weights are unchanged.

    The noise of a chosen weight is that of `shrink_perturb` with the same key. A leaf's mask
    depends only on the key and the leaf's path. Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is outside [0, 1]: give the share of weights to change")
    noised = shrink_perturb(lm, key, params, alpha, beta=beta)

    def mix(path, w, new):
        is_chosen = jax.random.bernoulli(leaf_key(key, path, "mask/"), share, w.shape)
        return jnp.where(is_chosen, new, w)

    return jax.tree_util.tree_map_with_path(mix, params, noised)

"""Shrink and perturb, the noise of UNDO (paper §4; Ash & Adams, arXiv 1910.08475)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from undo_jax.checks import check_constant
from undo_jax.noises import leaf_key
from undo_jax.runtime.sharding import path_name
from undo_jax.types import LM, Key, Params


def shrink_perturb(
    lm: LM, key: Key, params: Params, alpha: Float[Array, ""] | float, *, beta: float = 0.1
) -> Params:
    """θ' = (1 − α)θ + αβN: N is Xavier-uniform for matrices and zero for vectors.

    A leaf's noise depends only on the key and the leaf's path. Leaves under "layers" are stacked:
    there a matrix has three axes and a norm's vector two. Raises ValueError for a negative β.
    """
    check_constant("beta", beta, zero=True)

    def mix(path, w):
        name = path_name(path)
        rank = w.ndim - name.startswith("layers/")
        if rank < 2:
            return (1 - alpha) * w
        limit = (6 / sum(w.shape[-2:])) ** 0.5
        noise = jax.random.uniform(leaf_key(key, path), w.shape, jnp.float32, -limit, limit)
        return (1 - alpha) * w + alpha * beta * noise

    return jax.tree_util.tree_map_with_path(mix, params)

"""Pruning as the damage: the smallest weights are set to 0 (Han et al., arXiv 1506.02626)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from undo_jax.runtime.sharding import path_name
from undo_jax.types import LM, Key, Params


def prune(lm: LM, key: Key, params: Params, alpha: Float[Array, ""] | float) -> Params:
    """Sets the α·n weights of smallest magnitude, rounded, of each matrix of n weights to 0.

    Vectors are unchanged. The layers of a leaf under "layers" are matrices of their own. Weights as
    large as the smallest that is kept are kept, too. Nothing is random.
    """

    def cut(path, w):
        name = path_name(path)
        if w.ndim - name.startswith("layers/") < 2:
            return w
        stacked = w if name.startswith("layers/") else w[None]
        sizes = jnp.abs(stacked).reshape(len(stacked), -1)
        count = jnp.round(alpha * sizes.shape[1]).astype(jnp.int32)
        ordered = jnp.pad(jnp.sort(sizes), ((0, 0), (0, 1)), constant_values=jnp.inf)
        least = ordered[:, count].reshape(-1, *[1] * (stacked.ndim - 1))
        return jnp.where(jnp.abs(stacked) < least, 0, stacked).reshape(w.shape)

    return jax.tree_util.tree_map_with_path(cut, params)

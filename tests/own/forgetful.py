"""A noise in one file: each weight is set to zero with probability α."""

import jax
import jax.numpy as jnp

from undo_jax.noises import leaf_key


def forgetful(lm, key, params, alpha, *, scale=1.0):
    def drop(path, w):
        return jnp.where(jax.random.uniform(leaf_key(key, path), w.shape) < scale * alpha, 0, w)

    return jax.tree_util.tree_map_with_path(drop, params)

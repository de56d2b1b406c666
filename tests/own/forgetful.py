"""A noise in one file: each weight is set to zero with probability α."""

import zlib

import jax
import jax.numpy as jnp

from undo_jax.runtime.sharding import path_name


def forgetful(lm, key, params, alpha, *, scale=1.0):
    def drop(path, w):
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        return jnp.where(jax.random.uniform(leaf_key, w.shape) < scale * alpha, 0, w)

    return jax.tree_util.tree_map_with_path(drop, params)

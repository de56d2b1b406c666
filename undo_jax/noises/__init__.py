"""Noises: one file each, one pure function `(lm, key, params, alpha)`, named as the file.

`alpha` may be traced; 0 returns the parameters unchanged. A leaf's noise depends on the key and the
leaf's path, not on which other leaves there are.
"""

import zlib
from typing import Any

import jax

from undo_jax.runtime.sharding import path_name
from undo_jax.types import Key


def leaf_key(key: Key, path: Any, prefix: str = "") -> Key:
    """Returns the key of the leaf at a pytree path; with another prefix it is another one."""
    return jax.random.fold_in(key, zlib.crc32(f"{prefix}{path_name(path)}".encode()))

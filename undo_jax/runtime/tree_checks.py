"""Checks that trees of arrays, which plug-ins return, are as the model or the setting says."""

from typing import Any

import jax

from undo_jax.runtime.sharding import path_name

WHOLE = "return all parameters of the model, in their shapes and dtypes"  # a remedy


def check_tree(caller: str, tree: Any, expected: Any, remedy: str = WHOLE) -> None:
    """Raises ValueError unless a tree has the expected names, shapes and dtypes of arrays."""
    leaves, expected_leaves = (
        {
            path_name(path): _describe(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
        }
        for arrays in (tree, expected)
    )
    for name in [*expected_leaves, *leaves]:
        actual, needed = leaves.get(name, "nothing"), expected_leaves.get(name, "nothing")
        if actual != needed:
            place = f" for {name}" if name else ""
            raise ValueError(f"{caller} gives {actual}{place}, not {needed}: {remedy}")


def _describe(leaf: Any) -> str:
    """Returns dtype and shape of an array, e.g. float32[8, 2], or what else the leaf is."""
    if not hasattr(leaf, "shape"):
        return repr(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return f"{dtype}{list(leaf.shape)}"

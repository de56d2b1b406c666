"""How the head's work is split: along `fsdp`, by which rows and tables meet; and into chunks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from undo_jax.ops.head_losses import Axes
from undo_jax.runtime.collectives import all_gather, shard_offset
from undo_jax.runtime.mesh import split_axes


def met(rows: tuple[Any, ...], tables: tuple[Any, ...]) -> tuple[tuple[str, ...], Any, Any]:
    """The axes that split the vocabulary; and the rows and the tables that meet on a device.

    Of the group along `fsdp` these are either the device's own rows and all tables, or all rows and
    its own part of the tables; gradients go the other way. Rows and tables, first of all hidden
    states [b, T, D] and a table [v, D], are as wide as the models: what is gathered, moved and held
    is least where there are fewer of them, tokens of the batch or of the vocabulary.
    """
    hidden, table = rows[0], tables[0]
    if split_axes("fsdp") and hidden.shape[0] * hidden.shape[1] < len(table):
        return ("tensor", "fsdp"), _gathered(rows), tables
    return ("tensor",), rows, _gathered(tables)


def _gathered(tree: Any) -> Any:
    """All-gathered over `fsdp`, one after another: see `after`."""
    leaves, structure = jax.tree.flatten(tree)
    found: list[Array] = []
    for leaf in leaves:
        leaf = after(leaf, found[-1]) if found else leaf
        found.append(all_gather(leaf, "fsdp", axis=0))
    return jax.tree.unflatten(structure, found)


def after(x: Array, done: Array) -> Array:
    """`x`, once `done` is there: XLA for CPU hangs if devices wait in different collectives."""
    return lax.optimization_barrier((x, done))[0]


def own(axes: Axes, values: Array, count: int) -> Array:
    """Of the values of all rows that met, those of the device's own `count` rows."""
    first = shard_offset(count, "fsdp")
    return lax.dynamic_slice_in_dim(values, first, count) if "fsdp" in axes else values


def split(tree: Any, size: int) -> Any:
    """[B, T, ...] -> [chunks, B, size, ...]; the last chunk is padded with zeros."""

    def split_leaf(x):
        width = min(size, x.shape[1])
        count = -(-x.shape[1] // width)
        padding = [(0, 0), (0, count * width - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(x.shape[0], count, width, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(split_leaf, tree)


def join(x: Any, time: int) -> Any:
    """The inverse of `split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]

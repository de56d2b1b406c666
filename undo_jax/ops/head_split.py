"""Divides the work of the head: over `fsdp`, by gathering rows or tables, and into chunks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from undo_jax.ops.head_losses import Axes
from undo_jax.runtime.collectives import all_gather, shard_offset
from undo_jax.runtime.mesh import split_axes


def gather_smaller(
    rows: tuple[Any, ...], tables: tuple[Any, ...]
) -> tuple[tuple[str, ...], Any, Any]:
    """All-gathers either the rows or the tables over `fsdp`, whichever are fewer.

    Hidden states, `rows[0]`, [b, T, D], and a table, `tables[0]`, [v, D], have the same width, so
    the fewer of the batch's tokens and the vocabulary's tokens cost less to gather and to hold.
    Gradients are reduced along the same axis.

    Returns:
        The mesh axes that split the vocabulary, and the rows and the tables of a device.
    """
    hidden, table = rows[0], tables[0]
    if split_axes("fsdp") and hidden.shape[0] * hidden.shape[1] < len(table):
        return ("tensor", "fsdp"), _gathered(rows), tables
    return ("tensor",), rows, _gathered(tables)


def _gathered(tree: Any) -> Any:
    """All-gathers the leaves over `fsdp`, one after another: see `after`."""
    leaves, structure = jax.tree.flatten(tree)
    gathered: list[Array] = []
    for leaf in leaves:
        leaf = after(leaf, gathered[-1]) if gathered else leaf
        gathered.append(all_gather(leaf, "fsdp", axis=0))
    return jax.tree.unflatten(structure, gathered)


def after(x: Array, done: Array) -> Array:
    """Returns `x` after `done` is computed.

    XLA for CPU hangs if devices wait in different collectives.
    """
    return lax.optimization_barrier((x, done))[0]


def device_rows(axes: Axes, values: Array, count: int) -> Array:
    """Returns the values of a device's own `count` rows, where rows were gathered."""
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

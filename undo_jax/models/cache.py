"""The key/value cache of a decoder."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.models.architecture import Architecture
from undo_jax.types import Rules


class Cache(NamedTuple):
    """The token at position s is in slot s of its row, with its keys and values.

    Slots after the last token hold arbitrary values: they are overwritten before a query sees them.
    """

    tokens: Int[Array, "B S"]
    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]


def empty(config: Architecture, batch: int, size: int) -> Cache:
    """An empty cache for `size` tokens per row."""
    c = config
    shape = (c.layers, batch, size, c.kv_heads, c.head_width)
    tokens = jnp.zeros((batch, size), jnp.int32)
    return Cache(tokens, jnp.zeros(shape, c.compute_dtype), jnp.zeros(shape, c.compute_dtype))


def rules(config: Architecture, tensor: int) -> Rules:
    """How a cache is sharded where the `tensor` axis has that many devices."""
    rows, heads = ("data", "fsdp"), None if config.kv_heads % tensor else "tensor"
    return (r"tokens$", P(rows)), (r"(keys|values)$", P(None, rows, None, heads))

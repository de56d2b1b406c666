"""The key/value cache of a decoder."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.models.architecture import Architecture
from undo_jax.types import Rules


class Cache(NamedTuple):
    """Tokens, keys and values by position: slot s of a row holds those of its token s.

    Slots after the last token hold arbitrary values: they are overwritten before a query sees them.
    """

    tokens: Int[Array, "B S"]
    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]


def empty(config: Architecture, batch: int, size: int) -> Cache:
    """Returns an empty cache for `size` tokens per row."""
    shape = (config.layers, batch, size, config.kv_heads, config.head_width)
    keys, values = (jnp.zeros(shape, config.compute_dtype) for _ in range(2))
    return Cache(jnp.zeros((batch, size), jnp.int32), keys, values)


def rules(config: Architecture, tensor: int) -> Rules:
    """Returns how a cache is sharded where the `tensor` axis has `tensor` devices."""
    rows, heads = ("data", "fsdp"), None if config.kv_heads % tensor else "tensor"
    return (r"tokens$", P(rows)), (r"(keys|values)$", P(None, rows, None, heads))

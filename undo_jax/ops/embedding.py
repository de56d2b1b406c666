"""Embedding lookup in a sharded table."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.runtime.collectives import all_gather, on_devices, reduce_scatter, shard_offset
from undo_jax.runtime.mesh import BATCH, shard_count, split_axes
from undo_jax.runtime.sharding import pad_rows


def lookup(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """Returns `table[tokens]`, as `dtype`.

    Each device looks up its shard of V for the rows of its whole `fsdp` group; a reduce-scatter
    sums the results and returns each device its own rows. T is processed in as many pieces as the
    group has devices, so that a device needs no more memory than its own rows take.
    """

    def look_up(table, group):
        vocabulary = table.shape[0]
        local = group - shard_offset(vocabulary, "tensor", "fsdp")
        embedded = table[jnp.clip(local, 0, vocabulary - 1)].astype(dtype)
        if split_axes("tensor", "fsdp"):
            in_shard = (local >= 0) & (local < vocabulary)
            embedded = jnp.where(in_shard[..., None], embedded, 0)
        return lax.psum(reduce_scatter(embedded, "fsdp", axis=0), split_axes("tensor"))

    def on_device(table, tokens):
        group, pieces = all_gather(tokens, "fsdp", axis=0), shard_count("fsdp")
        if pieces == 1:
            return look_up(table, group)
        time = group.shape[1]
        group = jnp.pad(group, ((0, 0), (0, -time % pieces)))
        group = jnp.moveaxis(group.reshape(len(group), pieces, -1), 1, 0)
        embedded = jnp.moveaxis(lax.map(partial(look_up, table), group), 0, 1)
        return embedded.reshape(len(tokens), -1, table.shape[1])[:, :time]

    mapped = on_devices(on_device, (P(("tensor", "fsdp")), P(BATCH)), P(BATCH))
    return mapped(table, pad_rows(tokens))[: tokens.shape[0]]

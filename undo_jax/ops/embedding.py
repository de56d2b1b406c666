"""Embeddings of tokens, from a table that is split over devices."""

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.sharding import BATCH, first_of, gather, on_devices, pad_rows, several


def lookup(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """`table[tokens]`, as `dtype`.

    Each device looks up its part of V and D for the rows of its whole `fsdp` group, and the group
    exchanges what it found: that is as much as the rows themselves, however large the table.
    """

    def on_device(table, tokens):
        group = gather(tokens, "fsdp", axis=0)
        vocabulary, split = table.shape[0], several("tensor")
        local = group - first_of(vocabulary, "tensor")
        found = table[jnp.clip(local, 0, vocabulary - 1)].astype(dtype)
        if split:
            here = (local >= 0) & (local < vocabulary)
            found = lax.psum(jnp.where(here[..., None], found, 0), split)
        if there := several("fsdp"):
            found = lax.all_to_all(found, there, split_axis=0, concat_axis=2, tiled=True)
        return found

    mapped = on_devices(on_device, (P("tensor", "fsdp"), P(BATCH)), P(BATCH))
    return mapped(table, pad_rows(tokens))[: tokens.shape[0]]

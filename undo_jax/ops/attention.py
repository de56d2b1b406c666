"""Grouped-query attention with soft-capped scores, each query over its own span of keys."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.runtime.collectives import on_devices
from undo_jax.runtime.mesh import shard_count


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    scale: float,
    softcap: float | None,
    first: Int[Array, "#B T"],
    last: Int[Array, "#B T"],
) -> Float[Array, "B T N H"]:
    """Query t sees the keys of slots first[t] to last[t]; scores and softmax in fp32."""
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    group = (heads // kv_heads) * time  # the queries that share a key/value head, concatenated
    q = jnp.moveaxis(q, 1, 2).reshape(batch, kv_heads, group, width)
    scores = jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    slots = jnp.arange(k.shape[1])
    per_query = lambda x: jnp.tile(x, heads // kv_heads)[:, None, :, None]  # noqa: E731
    visible = (per_query(first) <= slots) & (slots <= per_query(last))
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
    out = jnp.einsum("bkqs,bskh->bkqh", weights.astype(v.dtype), v)
    return jnp.moveaxis(out.reshape(batch, heads, time, width), 2, 1)


def heads_divide(q: Float[Array, "B T N H"], k: Float[Array, "B T K H"]) -> bool:
    """Whether `tensor` divides the heads, and divides or is divided by the key/value heads."""
    heads, kv_heads, devices = q.shape[2], k.shape[2], shard_count("tensor")
    return heads % devices == 0 and 0 in (kv_heads % devices, devices % kv_heads)


def pad_width(x: Float[Array, "B T N H"], width: int) -> Float[Array, "B T N W"]:
    """Heads filled up with zeros to a width that kernels support: products q·k stay the same."""
    more = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))) if more else x


def over_heads(
    kernels: Callable[..., Float[Array, "B T N H"]],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *others: Any,
) -> Float[Array, "B T N H"]:
    """`kernels(q, k, v, *others)`, sharded by heads over `tensor`; `others` are replicated there.

    Where `tensor` has more devices than there are key/value heads, several share the same one.
    """
    if k.shape[2] < shard_count("tensor"):
        k, v = (jnp.repeat(x, shard_count("tensor") // k.shape[2], axis=2) for x in (k, v))
    split = P(None, None, "tensor")
    inputs = (split, split, split, *[P()] * len(others))
    return on_devices(kernels, inputs, split, ("tensor",))(q, k, v, *others)


def write(
    kept: Float[Array, "L B S K H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    start: Int[Array, " B"],
) -> Float[Array, "L B S K H"]:
    """`kept` with `new` in slots start, start + 1, ... of each row of one layer.

    XLA updates it in place where `kept` is not used again. Rows are a batch dimension of the
    scatter, so that each device writes its own; `kept.at[layer, rows, slots].set(new)` would
    all-gather `new` first.
    """
    corners = jnp.stack([jnp.broadcast_to(layer, start.shape), start], axis=-1)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0, 2),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return lax.scatter(kept, corners, new, numbers)

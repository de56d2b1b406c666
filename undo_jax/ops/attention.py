"""Grouped-query attention with soft-capped scores, where each query sees a range of keys."""

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
    """Returns the outputs of attention in which query t sees the keys first[t] to last[t].

    Scores and softmax are computed in fp32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Multiplies q·k before the softmax.
        softcap: Bounds scores to ± this by a tanh; None: no bound.
        first: The first of the S positions that each query sees.
        last: The last of the S positions that each query sees.
    """
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    group = (heads // kv_heads) * time  # the queries that share a key/value head, concatenated
    q = jnp.moveaxis(q, 1, 2).reshape(batch, kv_heads, group, width)
    scores = jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    positions = jnp.arange(k.shape[1])
    per_query = lambda x: jnp.tile(x, heads // kv_heads)[:, None, :, None]  # noqa: E731
    visible = (per_query(first) <= positions) & (positions <= per_query(last))
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
    out = jnp.einsum("bkqs,bskh->bkqh", weights.astype(v.dtype), v)
    return jnp.moveaxis(out.reshape(batch, heads, time, width), 2, 1)


def heads_divide(q: Float[Array, "B T N H"], k: Float[Array, "B T K H"]) -> bool:
    """Returns whether `tensor` splits the heads evenly.

    It must divide the query heads, and divide or be divided by the key/value heads.
    """
    heads, kv_heads, devices = q.shape[2], k.shape[2], shard_count("tensor")
    return heads % devices == 0 and 0 in (kv_heads % devices, devices % kv_heads)


def pad_width(x: Float[Array, "B T N H"], width: int) -> Float[Array, "B T N W"]:
    """Pads heads with zeros to a width that kernels support; products q·k stay the same."""
    missing = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing else x


def over_heads(
    kernels: Callable[..., Float[Array, "B T N H"]],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *replicated: Any,
) -> Float[Array, "B T N H"]:
    """Returns `kernels(q, k, v, *replicated)`, with heads sharded over `tensor`.

    Where `tensor` has more devices than there are key/value heads, several share the same head.
    """
    if k.shape[2] < shard_count("tensor"):
        k, v = (jnp.repeat(x, shard_count("tensor") // k.shape[2], axis=2) for x in (k, v))
    split = P(None, None, "tensor")
    inputs = (split, split, split, *[P()] * len(replicated))
    return on_devices(kernels, inputs, split, ("tensor",))(q, k, v, *replicated)


def write(
    cache: Float[Array, "L B S K H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    start: Int[Array, " B"],
) -> Float[Array, "L B S K H"]:
    """Returns `cache` with `new` at positions start, start + 1, ... of each row of one layer.

    XLA updates it in place where `cache` is not used again. Rows are a batch dimension of the
    scatter, so that each device writes its own; `cache.at[layer, rows, positions].set(new)` would
    all-gather `new` first.

    Args:
        cache: Keys or values of all layers.
        new: Keys or values of T new tokens.
        layer: The index of the layer.
        start: The first position of each row.
    """
    corners = jnp.stack([jnp.broadcast_to(layer, start.shape), start], axis=-1)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0, 2),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return lax.scatter(cache, corners, new, numbers)

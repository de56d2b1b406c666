"""Causal grouped-query attention with soft-capped scores and a sliding window."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    softcap: float | None,
    window: Int[Array, ""] | int,
) -> Float[Array, "B T N H"]:
    """Each query sees itself and the `window - 1` tokens before it; scores and softmax in fp32."""
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    group = (heads // kv_heads) * time  # the queries that share a key/value head, side by side
    q = jnp.moveaxis(q, 1, 2).reshape(batch, kv_heads, group, width)
    scores = jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    distance = jnp.arange(group)[:, None] % time - jnp.arange(time)[None, :]
    visible = (distance >= 0) & (distance < window)
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
    out = jnp.einsum("bkqs,bskh->bkqh", weights.astype(v.dtype), v)
    return jnp.moveaxis(out.reshape(batch, heads, time, width), 2, 1)

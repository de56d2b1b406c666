"""Attention on TPU that never stores its scores: JAX's splash kernels, forward and backward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float, Int

from undo_jax.ops.attention import heads_divide, over_heads, pad_width

LANES = 128  # sizes of heads and blocks are multiples of this
PADDED = 64, 96  # widths of smaller heads, which are padded with zeros
INTERPRET = False  # run on a CPU, for tests


def available(q: Float[Array, "B T N H"], k: Float[Array, "B T K H"]) -> bool:
    """Returns whether the kernels can be used: on TPU, in bf16, for supported sizes."""
    width = q.shape[3] % LANES == 0 or q.shape[3] in PADDED
    fits = q.shape[1] % LANES == 0 and width and heads_divide(q, k)
    return pltpu.is_tpu_device() and q.dtype == jnp.bfloat16 and fits


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    local: Bool[Array, ""] | None,
    documents: Int[Array, "#B T"] | None,
) -> Float[Array, "B T N H"]:
    """Computes causal attention within documents; if `local`, over the last `window` tokens.

    `local=None` means True with a window and False without one. `documents` has the number of each
    token's document; None: each row is one document.
    """
    kernels = partial(_attention, scale=scale, softcap=softcap, window=window)
    width = q.shape[3]
    q, k, v = (pad_width(x, -(-width // LANES) * LANES) for x in (q, k, v))
    return over_heads(kernels, q, k, v, local, documents)[..., :width]


def _attention(q, k, v, local, documents, *, scale, softcap, window):
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q = jnp.moveaxis(q, 1, 2).reshape(batch, kv_heads, heads // kv_heads, time, width)
    k, v = (jnp.moveaxis(x, 1, 2) for x in (k, v))
    if documents is not None:
        documents = jnp.broadcast_to(documents, (batch, time))
        documents = splash.SegmentIds(documents, documents)

    def run(mask):
        kernel = _kernel(mask, heads // kv_heads, softcap)
        over_rows: Any = jax.vmap(jax.vmap(kernel, (0, 0, 0, None)), (0, 0, 0, 0))
        return lambda: over_rows(q, k, v, documents)

    far = run(splash.CausalMask((time, time)))
    if window is None or window >= time:
        out = far()
    else:
        near = run(splash.LocalMask((time, time), (window - 1, 0), 0))
        out = near() if local is None else lax.cond(local, near, far)
    return jnp.moveaxis(out.reshape(batch, heads, time, width), 1, 2)


def _kernel(mask, group, softcap):
    """Returns the kernel of one key/value head and its queries: q [G, T, H], k and v [T, H]."""
    size = next(size for size in (4 * LANES, 2 * LANES, LANES) if mask.shape[0] % size == 0)
    names = "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"
    blocks = splash.BlockSizes(**dict.fromkeys(names, size))
    return splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([mask] * group),
        block_sizes=blocks,
        attn_logits_soft_cap=softcap,
        interpret=INTERPRET,
    )

"""Attention on GPU that never stores its scores: Triton kernels, forward and backward."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from undo_jax.ops import gpu
from undo_jax.ops.attention import heads_divide, over_heads, pad_width

HIDDEN = -1e30  # a masked logit; finite, because a query may see no key of a block


class Tile(NamedTuple):
    """The sizes of a kernel's blocks of T, and compiler parameters."""

    block: int  # positions whose results a program computes
    step: int  # positions that it reads per iteration
    warps: int
    stages: int


TILES = {  # by head width: for the output, for the gradient of q, for the gradients of k and v
    32: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(128, 32, 8, 3)),
    64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)),
    128: (Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 32, 4, 3)),
    256: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 3), Tile(64, 32, 8, 2)),
}
PADDED = {96: 128}  # head widths that are filled up with zeros


class Scores(NamedTuple):
    """How products q·k become logits."""

    scale: float
    softcap: float | None

    def of(self, products):
        """Returns logits in bits, up to a constant that cancels in softmax, and their derivative.

        The derivative is in units of `unit`. c·tanh(x/c) is computed as c - 2c/(1 + exp(2x/c)).
        """
        if self.softcap is None:
            return products * (self.scale * gpu.LOG2_E), 1.0
        share = gpu.inverse(1 + gpu.exp2(products * (2 * self.scale / self.softcap * gpu.LOG2_E)))
        return share * (-2 * self.softcap * gpu.LOG2_E), share - share * share

    @property
    def unit(self):
        return self.scale if self.softcap is None else 4 * self.scale


def available(q: Float[Array, "B T N H"], k: Float[Array, "B T K H"]) -> bool:
    """Returns whether the kernels can be used: on a GPU in `GPUS`, in bf16, for these sizes."""
    fits = (q.shape[3] in TILES or q.shape[3] in PADDED) and heads_divide(q, k)
    return gpu.supported_gpu() is not None and q.dtype == jnp.bfloat16 and fits


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    softcap: float | None,
    first: Int[Array, "#B T"],
) -> Float[Array, "B T N H"]:
    """Computes attention in which query t sees keys first[t] to t; first[t] never decreases."""
    first, width = jnp.broadcast_to(first, q.shape[:2]), q.shape[3]
    q, k, v = (pad_width(x, PADDED.get(width, width)) for x in (q, k, v))
    kernels = partial(_attention, Scores(scale, softcap))
    return over_heads(kernels, q, k, v, first)[..., :width]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(scores, q, k, v, first):
    return _forward(scores, q, k, v, first)[0]


def _forward(scores, q, k, v, first):
    batch, time, heads, width = q.shape
    tile, arguments = TILES[width][0], (q, k, v, first)
    total = jax.ShapeDtypeStruct((batch, heads, time), jnp.float32)
    out, total = _call(partial(_output_kernel, scores, tile), tile, 2, heads, arguments, (q, total))
    return out, (*arguments, out, total)


def _backward(scores, saved, d_out):
    q, k, v, first, out, total = saved
    time, heads, width = q.shape[1:]
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    arguments = q, k, v, first, d_out, total, jnp.moveaxis(delta, 1, 2)
    _, tile, keys_tile = TILES[width]
    (dq,) = _call(partial(_query_kernel, scores, tile), tile, 3, heads, arguments, (q,))
    last = jnp.minimum(jnp.arange(0, time, keys_tile.block) + keys_tile.block, time) - 1
    end = jnp.sum(first[:, None] <= last[:, None], axis=-1, dtype=jnp.int32)
    kernel, arguments = partial(_key_kernel, scores, keys_tile), (*arguments, end)
    dk, dv = _call(kernel, keys_tile, 4, k.shape[2], arguments, (k, v))
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


def _call(kernel, tile, products, heads, arguments, results):
    """Runs a kernel for each block of T, head and row.

    A program reads all positions of a row, and of each array the heads that belong to its head.
    `products` is the number of T × T × H matrix products per query head; the causal mask halves
    each of them.
    """
    batch, time, query_heads, width = arguments[0].shape

    def seen(x):
        if x.ndim == 2:
            return pl.BlockSpec((None, x.shape[1]), lambda i, n, b: (b, 0))
        count = x.shape[1 if x.ndim == 3 else 2]
        size = max(1, count // heads)
        head = lambda n: n * count // heads // size  # noqa: E731
        if x.ndim == 3:
            return pl.BlockSpec((None, size, time), lambda i, n, b: (b, head(n), 0))
        return pl.BlockSpec((None, time, size, width), lambda i, n, b: (b, 0, head(n), 0))

    run = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(time, tile.block), heads, batch),
        in_specs=[seen(x) for x in arguments],
        out_specs=[seen(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=gpu.INTERPRET,
        name=f"attention{kernel.func.__name__}",
    )
    with gpu.counted(products * batch * query_heads * time * time * width):
        return run(*arguments)


def _output_kernel(scores, tile, q_ref, k_ref, v_ref, first_ref, out_ref, total_ref):
    start, blocks = _span(tile, first_ref)
    q, first = (_load(ref, start, tile.block) for ref in (q_ref, first_ref))

    def step(block, carry):
        top, total, out = carry
        key = block * tile.step
        k, v = (_load(ref, key, tile.step) for ref in (k_ref, v_ref))
        logits, _ = scores.of(plgpu.dot(q, k, trans_b=True))
        logits = jnp.where(_visible(start, first, key, tile.step), logits, HIDDEN)
        higher = jnp.maximum(top, jnp.max(logits, axis=1))
        shrunk, weights = gpu.exp2(top - higher), gpu.exp2(logits - higher[:, None])
        total = total * shrunk + jnp.sum(weights, axis=1)
        return higher, total, out * shrunk[:, None] + plgpu.dot(weights.astype(v.dtype), v)

    each = jnp.zeros(tile.block)
    top, total, out = lax.fori_loop(*blocks, step, (each + HIDDEN, each, jnp.zeros(q.shape)))
    _store(out_ref, start, out * gpu.inverse(total)[:, None])
    _store(total_ref, start, top + jnp.log2(total))


def _query_kernel(scores, tile, q_ref, k_ref, v_ref, first_ref, d_out_ref, *refs):
    total_ref, delta_ref, dq_ref = refs
    start, blocks = _span(tile, first_ref)
    queries = q_ref, first_ref, d_out_ref, total_ref, delta_ref
    q, first, d_out, total, delta = (_load(ref, start, tile.block) for ref in queries)

    def step(block, dq):
        key = block * tile.step
        k, v = (_load(ref, key, tile.step) for ref in (k_ref, v_ref))
        logits, slope = scores.of(plgpu.dot(q, k, trans_b=True))
        logits = jnp.where(_visible(start, first, key, tile.step), logits, HIDDEN)
        weights = gpu.exp2(logits - total[:, None])
        change = weights * (plgpu.dot(d_out, v, trans_b=True) - delta[:, None]) * slope
        return dq + plgpu.dot(change.astype(k.dtype), k)

    dq = lax.fori_loop(*blocks, step, jnp.zeros(q.shape))
    _store(dq_ref, start, dq * scores.unit)


def _key_kernel(scores, tile, q_ref, k_ref, v_ref, first_ref, d_out_ref, *refs):
    total_ref, delta_ref, end_ref, dk_ref, dv_ref = refs
    key = pl.program_id(0) * tile.block
    k, v = (_load(ref, key, tile.block) for ref in (k_ref, v_ref))
    blocks = lax.div(key, tile.step), pl.cdiv(end_ref[pl.program_id(0)], tile.step)
    queries = q_ref, first_ref, d_out_ref, total_ref, delta_ref

    def head(n, sums):
        def step(block, sums):
            dk, dv = sums
            start = block * tile.step
            q, first, d_out, total, delta = (_load(ref, start, tile.step, n) for ref in queries)
            logits, slope = scores.of(plgpu.dot(k, q, trans_b=True))
            logits = jnp.where(_visible(start, first, key, tile.block).T, logits, HIDDEN)
            weights = gpu.exp2(logits - total)
            change = weights * (plgpu.dot(v, d_out, trans_b=True) - delta) * slope
            dv += plgpu.dot(weights.astype(d_out.dtype), d_out)
            return dk + plgpu.dot(change.astype(q.dtype), q), dv

        return lax.fori_loop(*blocks, step, sums)

    zeros = jnp.zeros(k.shape)
    dk, dv = lax.fori_loop(0, q_ref.shape[1], head, (zeros, zeros))
    _store(dk_ref, key, dk * scores.unit)
    _store(dv_ref, key, dv)


def _span(tile, first_ref):
    """Returns the first query of a program, and the range of blocks of keys that it sees."""
    start = (pl.num_programs(0) - 1 - pl.program_id(0)) * tile.block  # longest first
    end = jnp.minimum(start + tile.block, first_ref.shape[0])
    return start, (lax.div(first_ref[start], tile.step), pl.cdiv(end, tile.step))


def _visible(start, first, key, keys):
    """Returns the mask [queries, keys] of queries from `start` on and keys from `key` on."""
    queries, keys = start + jnp.arange(len(first)), key + jnp.arange(keys)
    return (first[:, None] <= keys) & (keys <= queries[:, None])


def _load(ref, start, size, head=0):
    """Loads positions start, start + 1, ... of a head; 0 beyond the end of T."""
    part, mask = _part(ref, start, size, head)
    return plgpu.load(part, mask=mask, other=None if mask is None else 0)


def _store(ref, start, x):
    part, mask = _part(ref, start, len(x), 0)
    plgpu.store(part, x.astype(ref.dtype), mask=mask)


def _part(ref, start, size, head):
    """Returns a part of [T], [N, T] or [T, N, H], and the mask of positions before T's end."""
    time, slots = ref.shape[0 if ref.ndim == 3 else -1], pl.ds(start, size)
    head += jnp.zeros((), jnp.int32)  # a masked load, interpreted, takes no Python number
    mask = None if time % size == 0 else start + jnp.arange(size) < time
    if ref.ndim == 3:
        return ref.at[slots, head], None if mask is None else mask[:, None]
    return ref.at[slots] if ref.ndim == 1 else ref.at[head, slots], mask

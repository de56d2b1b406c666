"""One layer of the decoder: attention and MLP, each with its norms.

Every kernel is a plain matrix [in, out], so that "matrix" and "vector" mean the same as in the
paper's noise.
"""

import operator
import zlib
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from undo_jax.models.architecture import Adapters, Architecture
from undo_jax.models.rope import LongRope, frequencies, rope
from undo_jax.ops import attention_gpu, attention_tpu
from undo_jax.ops.attention import attention, write
from undo_jax.ops.linear import linear
from undo_jax.runtime.collectives import shard_offset
from undo_jax.runtime.mesh import BATCH
from undo_jax.types import States


class Cache(NamedTuple):
    """Tokens, keys and values by position: position s of a row holds those of its token s.

    Those after the last token hold arbitrary values: they are overwritten before a query sees them.
    """

    tokens: Int[Array, "B S"]
    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]


class Norm(nnx.Module):
    """RMS norm of the last axis in fp32, scaled by norm_offset + w."""

    def __init__(self, config: Architecture, width: int):
        self.epsilon, self.offset = config.norm_epsilon, config.norm_offset
        self.norm = nnx.Param(jnp.full(width, 1 - config.norm_offset))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * (self.offset + self.norm[...])).astype(x.dtype)


class Span(NamedTuple):
    """The keys each token attends to in one layer: from its document's start to its position."""

    layer: Int[Array, ""]
    local: Bool[Array, ""] | None  # whether the layer slides; None: all do, or none does
    starts: Int[Array, "#B T"]  # position of the first token of each token's document
    positions: Int[Array, "#B T"]


def slides(sliding: tuple[bool, ...], layer: Int[Array, ""]) -> Bool[Array, ""] | None:
    """Returns whether a layer slides; None where all layers are alike."""
    if len(set(sliding)) == 1:
        return None
    place = layer % len(sliding)
    return reduce(operator.or_, (place == i for i, local in enumerate(sliding) if local))


class Attention(nnx.Module):
    def __init__(self, config: Architecture, rngs: nnx.Rngs):
        self.config = config
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = matrix(config, rngs, config.width, queries)
        self.key = matrix(config, rngs, config.width, keys)
        self.value = matrix(config, rngs, config.width, keys)
        self.output = matrix(config, rngs, queries, config.width)
        bias = lambda exists, size: nnx.Param(jnp.zeros(size)) if exists else None  # noqa: E731
        self.query_bias = bias(config.qkv_bias, queries)
        self.key_bias, self.value_bias = (bias(config.qkv_bias, keys) for _ in range(2))
        self.output_bias = bias(config.output_bias, config.width)
        norm = lambda: Norm(config, config.head_width) if config.qk_norm else None  # noqa: E731
        self.query_norm, self.key_norm = norm(), norm()
        add_adapters(self, config.adapters, rngs)

    def __call__(self, x: States, span: Span, cache: Cache | None) -> tuple[States, Cache | None]:
        config, window = self.config, self.config.window
        # project to heads of queries, keys and values
        split = lambda y: y.reshape(*y.shape[:2], -1, config.head_width)  # noqa: E731
        q, k, v = (split(project(self, name, x)) for name in ("query", "key", "value"))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = self._rotated(q, k, span, cache)
        # append keys and values to the cache
        if cache is not None:
            place = span.layer, span.positions[:, 0]
            keys, values = write(cache.keys, k, *place), write(cache.values, v, *place)
            cache = cache._replace(keys=keys, values=values)
            k, v = keys[span.layer], values[span.layer]
        # attend with the kernel of the platform
        scores = {"scale": config.attention_scale, "softcap": config.attention_softcap}
        first = span.starts
        if window is not None:
            first = jnp.maximum(span.positions - window + 1, span.starts)
        if span.local is not None:
            first = jnp.where(span.local, first, span.starts)
        if cache is None and attention_tpu.available(q, k):
            documents = None if config.document_start is None else span.starts
            scores |= {"window": window, "local": span.local, "documents": documents}
            out = attention_tpu.attention(q, k, v, **scores)
        elif cache is None and attention_gpu.available(q, k):
            out = attention_gpu.attention(q, k, v, first=first, **scores)
        else:
            out = attention(q, k, v, first=first, last=span.positions, **scores)
        out = out.reshape(*x.shape[:2], -1)
        return project(self, "output", out), cache

    def _rotated(self, q: Array, k: Array, span: Span, cache: Cache | None) -> tuple[Array, Array]:
        """Rotates queries and keys to their positions; a cache is as long as its row may become."""
        config, half = self.config, self.config.head_width // 2
        scaling, local = config.rope_scaling, config.local_theta
        length = span.positions.shape[1] if cache is None else cache.keys.shape[2]
        frequency = frequencies(config.rope_theta, half, scaling, length)
        if local is not None and span.local is not None:
            frequency = jnp.where(span.local, frequencies(local, half), frequency)
        elif local is not None and all(config.sliding):
            frequency = frequencies(local, half)
        multiplier = scaling.multiplier if isinstance(scaling, LongRope) else 1.0
        rotate = partial(rope, positions=span.positions, frequency=frequency, multiplier=multiplier)
        return rotate(q), rotate(k)


class MLP(nnx.Module):
    """Computes down(activation(gate x) · up x), where gelu is in its tanh form."""

    def __init__(self, config: Architecture, rngs: nnx.Rngs):
        self.silu = config.activation == "silu"
        self.gate = matrix(config, rngs, config.width, config.feed_forward)
        self.up = matrix(config, rngs, config.width, config.feed_forward)
        self.down = matrix(config, rngs, config.feed_forward, config.width)
        add_adapters(self, config.adapters, rngs)

    def __call__(self, x: States) -> States:
        gate = project(self, "gate", x)
        gate = jax.nn.silu(gate) if self.silu else jax.nn.gelu(gate, approximate=True)
        return project(self, "down", gate * project(self, "up", x))


class Layer(nnx.Module):
    """Attention and MLP, each with a norm before, each added to the residual stream.

    With `after_norms` there is one more norm before each addition.
    """

    def __init__(self, config: Architecture, rngs: nnx.Rngs):
        norm = lambda: Norm(config, config.width)  # noqa: E731
        after = lambda: norm() if config.after_norms else None  # noqa: E731
        self.attention, self.mlp = Attention(config, rngs), MLP(config, rngs)
        self.before_attention, self.after_attention = norm(), after()
        self.before_mlp, self.after_mlp = norm(), after()

    def __call__(
        self, x: States, span: Span, cache: Cache | None
    ) -> tuple[States, States, Cache | None]:
        """Returns the residual stream after the layer, the MLP's output, and the cache."""
        attended, cache = self.attention(self.before_attention(x), span, cache)
        x = x + (attended if self.after_attention is None else self.after_attention(attended))
        mlp = self.mlp(self.before_mlp(x))
        return x + (mlp if self.after_mlp is None else self.after_mlp(mlp)), mlp, cache


def add_adapters(module: Any, adapters: Adapters | None, rngs: nnx.Rngs) -> None:
    """Adds an adapter to each target of a module: A, normal with deviation 1/r, and B, zero."""
    module.adapters = adapters
    if adapters is None:
        return
    for name in adapters.targets:
        if (weight := getattr(module, name, None)) is not None:
            (rows, columns), rank = weight.shape, adapters.rank
            a = jax.random.normal(rngs.params(), (rows, rank), jnp.float32) / rank
            setattr(module, f"{name}_lora_a", nnx.Param(a))
            setattr(module, f"{name}_lora_b", nnx.Param(jnp.zeros((rank, columns))))
    if adapters.dropout:
        module.lora_key = nnx.Param(jnp.zeros(2, jnp.uint32))


def project(module: Any, name: str, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
    """Returns x W + b + (α/r) x A B, where the matrix `name` may have no bias and no adapter."""
    y = linear(x, getattr(module, name).astype(x.dtype))
    if (bias := getattr(module, f"{name}_bias", None)) is not None:
        y = y + bias.astype(x.dtype)
    adapters, a = module.adapters, getattr(module, f"{name}_lora_a", None)
    if a is None:
        return y
    if adapters.dropout:
        x = _dropped(module.lora_key[...], name, x, adapters.dropout)
    b = getattr(module, f"{name}_lora_b")
    low = linear(linear(x, a.astype(x.dtype)), b.astype(x.dtype))
    return y + (adapters.alpha / adapters.rank) * low


def _dropped(key: Array, name: str, x: Float[Array, "B T I"], rate: float) -> Float[Array, "B T I"]:
    """Applies dropout with one key per row of the batch, however it is split over devices."""
    key = jax.random.fold_in(jax.random.wrap_key_data(key), zlib.crc32(name.encode()))
    rows = shard_offset(x.shape[0], *BATCH) + jnp.arange(x.shape[0])
    draw = lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape[1:])  # noqa: E731
    return jnp.where(jax.vmap(draw)(rows), x / (1 - rate), 0).astype(x.dtype)


def matrix(config: Architecture, rngs: nnx.Rngs, rows: int, columns: int) -> nnx.Param:
    """Returns an fp32 matrix drawn from N(0, init_stddev²)."""
    draw = jax.random.normal(rngs.params(), (rows, columns), jnp.float32)
    return nnx.Param(config.init_stddev * draw)

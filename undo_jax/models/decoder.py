"""The Gemma-2 decoder (arXiv 2408.00118) in Flax NNX, and its sharding.

Layers are stacked along a leading axis and run by `lax.scan`. Every kernel is a plain matrix
[in, out], so that "matrix" and "vector" mean the same here as in the paper's noise.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from undo_jax.collectives import gather_weight, on_devices
from undo_jax.mesh import BATCH
from undo_jax.models.architecture import Architecture
from undo_jax.models.cache import Cache
from undo_jax.models.taps import OF_TAPPED, Stacked, edit, nothing_yet, record, stack
from undo_jax.ops import attention_gpu, attention_tpu
from undo_jax.ops.attention import attention, write
from undo_jax.ops.embedding import lookup
from undo_jax.ops.linear import linear
from undo_jax.sharding import pad_rows, spec_of, specs
from undo_jax.types import Edits, Key, Rules, Tapped, Taps

LAYERS: Rules = (
    (r"attention/(query|key|value)$", P(None, "fsdp", "tensor")),
    (r"attention/output$", P(None, "tensor", "fsdp")),
    (r"mlp/(gate|up)$", P(None, "fsdp", "tensor")),
    (r"mlp/down$", P(None, "tensor", "fsdp")),
    (r"norm$", P()),
)
SHARDING: Rules = ((r"embedding$", P(("tensor", "fsdp"))), *LAYERS)
KEPT = {  # what the backward pass keeps of a layer, by remat policy; never gathered weights
    "none": lambda primitive, *_, **__: primitive.name != "linear_call",
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive.name == "pallas_call",
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Norm(nnx.Module):
    """RMS norm in fp32, scaled by 1 + w."""

    def __init__(self, config: Architecture):
        self.epsilon = config.norm_epsilon
        self.norm = nnx.Param(jnp.zeros(config.width))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * (1 + self.norm[...])).astype(x.dtype)


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "#B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Rotary embedding: the two halves of H are the rotated pairs; angles in fp32."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, half)
    rotated = halves * jnp.stack([cos, cos], -2) + halves[..., ::-1, :] * jnp.stack([-sin, sin], -2)
    return rotated.reshape(x.shape).astype(x.dtype)


class Span(NamedTuple):
    """What each token sees in one layer: from its document's first slot to its own position."""

    layer: Int[Array, ""]
    opened: Int[Array, "#B T"]
    positions: Int[Array, "#B T"]

    @property
    def local(self) -> Bool[Array, ""]:
        """Whether this layer has a sliding window."""
        return self.layer % 2 == 0


class Attention(nnx.Module):
    def __init__(self, config: Architecture, rngs: nnx.Rngs):
        self.config = config
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = matrix(config, rngs, config.width, queries)
        self.key = matrix(config, rngs, config.width, keys)
        self.value = matrix(config, rngs, config.width, keys)
        self.output = matrix(config, rngs, queries, config.width)

    def __call__(
        self, x: Float[Array, "B T D"], span: Span, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        config = self.config
        split = lambda y: y.reshape(*y.shape[:2], -1, config.head_width)  # noqa: E731
        q, k, v = (split(linear(x, w.astype(x.dtype))) for w in (self.query, self.key, self.value))
        q, k = (rope(y, span.positions, config.rope_theta) for y in (q, k))
        if cache is not None:
            place = span.layer, span.positions[:, 0]
            cache = cache._replace(
                keys=write(cache.keys, k, *place), values=write(cache.values, v, *place)
            )
            k, v = cache.keys[span.layer], cache.values[span.layer]
        scores = {"scale": config.attention_scale, "softcap": config.attention_softcap}
        near = jnp.maximum(span.positions - config.window + 1, span.opened)
        first = jnp.where(span.local, near, span.opened)
        if cache is None and attention_tpu.available(q, k):
            documents = None if config.document_start is None else span.opened
            scores |= {"window": config.window, "local": span.local, "documents": documents}
            out = attention_tpu.attention(q, k, v, **scores)
        elif cache is None and attention_gpu.available(q, k):
            out = attention_gpu.attention(q, k, v, first=first, **scores)
        else:
            out = attention(q, k, v, first=first, last=span.positions, **scores)
        return linear(out.reshape(*x.shape[:2], -1), self.output.astype(x.dtype)), cache


class MLP(nnx.Module):
    """Gated: down(gelu(gate x) · up x), gelu in its tanh form."""

    def __init__(self, config: Architecture, rngs: nnx.Rngs):
        self.gate = matrix(config, rngs, config.width, config.feed_forward)
        self.up = matrix(config, rngs, config.width, config.feed_forward)
        self.down = matrix(config, rngs, config.feed_forward, config.width)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up, down = (w.astype(x.dtype) for w in (self.gate, self.up, self.down))
        gated = jax.nn.gelu(linear(x, gate), approximate=True) * linear(x, up)
        return linear(gated, down)


class Layer(nnx.Module):
    """Attention and MLP, each with a norm before and after, each added to the residual stream."""

    def __init__(self, config: Architecture, rngs: nnx.Rngs):
        self.attention, self.mlp = Attention(config, rngs), MLP(config, rngs)
        self.before_attention, self.after_attention = Norm(config), Norm(config)
        self.before_mlp, self.after_mlp = Norm(config), Norm(config)

    def __call__(
        self, x: Float[Array, "B T D"], span: Span, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], Cache | None]:
        """The residual stream after the layer, the MLP's output, and the cache."""
        attended, cache = self.attention(self.before_attention(x), span, cache)
        x = x + self.after_attention(attended)
        made = self.mlp(self.before_mlp(x))
        return x + self.after_mlp(made), made, cache


class Decoder(nnx.Module):
    """Tokens to hidden states. The embedding is also the head's table (tied)."""

    def __init__(self, config: Architecture, key: Key):
        self.config = config
        embedding_key, layers_key = jax.random.split(key)
        self.embedding = matrix(config, nnx.Rngs(embedding_key), config.vocabulary, config.width)
        make = nnx.vmap(lambda key: Layer(config, nnx.Rngs(key)), in_axes=0, out_axes=0)
        self.layers = make(jax.random.split(layers_key, config.layers))
        self.final = Norm(config)

    def activations(self, tokens: Int[Array, "B T"], layer: int) -> Float[Array, "B T D"]:
        return self._forward(tokens, layer, None, Edits())[0]

    def __call__(
        self, tokens: Int[Array, "B T"], taps: Taps | None = None, edits: Edits | None = None
    ) -> tuple[Float[Array, "B T D"], Tapped | None]:
        """Hidden states, and what the taps find."""
        x, tapped = self._forward(tokens, self.config.layers, taps, edits or Edits())
        return self.final(x), tapped

    def extend(
        self, cache: Cache, tokens: Int[Array, "B T"], start: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T D"], Cache]:
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        put = jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (at,)))
        cache = cache._replace(tokens=put(cache.tokens, tokens, start))
        x = self._embedded(tokens)
        run_layers, params = self._scan(self.config.layers, None, Edits())
        # few new tokens are smaller than a layer's weights, which therefore stay sharded
        x, _, cache = run_layers(x, tokens, positions, params, Stacked(), cache)
        return self.final(x), cache

    def _opened(self, read: Int[Array, "B S"], positions: Int[Array, "#B T"]) -> Int[Array, "#B T"]:
        """The slot at which the document of each position starts."""
        if self.config.document_start is None:
            return jnp.zeros_like(positions)
        slots = jnp.arange(read.shape[1])
        opened = lax.cummax(jnp.where(read == self.config.document_start, slots, 0), axis=1)
        return jnp.take_along_axis(opened, positions, axis=1)

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        dtype = self.config.compute_dtype
        return lookup(self.embedding[...], tokens, dtype) * self._multiplier

    @property
    def _multiplier(self) -> Float[Array, ""]:
        """Scale of embeddings, √D, rounded to the compute dtype."""
        return jnp.asarray(math.sqrt(self.config.width), self.config.compute_dtype)

    def _forward(
        self, tokens: Int[Array, "B T"], layers: int, taps: Taps | None, edits: Edits
    ) -> tuple[Float[Array, "B T D"], Tapped | None]:
        """The residual stream after the first `layers` layers, and what the taps find."""
        rows, time = tokens.shape
        before = 0 if edits.prefix is None else edits.prefix.shape[-2]
        positions = jnp.arange(before + time)[None]
        tokens = pad_rows(tokens)
        x = self._embedded(tokens)
        if edits.prefix is not None:
            x = self._prefixed(x, edits.prefix)
        run_layers, params = self._scan(layers, taps, edits)
        stacked = stack(edits, before)
        inputs = P(BATCH), P(BATCH), P(), specs(params, LAYERS), stacked.specs
        outputs = P(BATCH), None if taps is None else OF_TAPPED, None
        mapped = on_devices(run_layers, inputs, outputs, BATCH)
        x, tapped, _ = mapped(x, tokens, positions, params, stacked)
        if tapped is not None:
            tapped = jax.tree.map(lambda found: found[:, :rows, before:], tapped)
        return x[:rows, before:], tapped

    def _prefixed(self, x: Float[Array, "B T D"], prefix: Array) -> Float[Array, "B S D"]:
        """Prepend the prefix. Raises ValueError if attention ends at the start of a document."""
        if self.config.document_start is not None:
            raise ValueError(
                f"a prefix and document_start={self.config.document_start}: attention within "
                "documents does not reach a prefix, set document_start to none"
            )
        prefix = prefix.astype(x.dtype) * self._multiplier
        prefix = pad_rows(prefix) if prefix.ndim == 3 else prefix[None]
        prefix = jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape[1:]))
        return jnp.concatenate([prefix, x], axis=1)

    def _scan(self, layers: int, taps: Taps | None, edits: Edits) -> tuple[Callable, Any]:
        """A function that runs the first `layers` layers, and their parameters."""
        config = self.config
        graph, params = nnx.split(self.layers)
        params = jax.tree.map(lambda w: w[:layers], nnx.to_pure_dict(params))

        def run_layers(x, tokens, positions, params, stacked, cache=None):
            opened = self._opened(tokens if cache is None else cache.tokens, positions)
            x, tapped = edit(x, stacked, edits, 0), None
            if taps is not None:
                tapped = nothing_yet(taps, x)
                tapped = tapped._replace(residual=record(tapped.residual, taps.residual, 0, x))

            def run(carry, one):
                (x, tapped, cache), (index, params) = carry, one
                params = _gathered(params, config) if cache is None else params
                span = Span(index, opened, positions)
                x, made, cache = nnx.merge(graph, params)(x, span, cache)
                x = edit(x, stacked, edits, index + 1)
                if taps is not None:
                    tapped = Tapped(
                        record(tapped.residual, taps.residual, index + 1, x),
                        record(tapped.mlp, taps.mlp, index, made),
                    )
                return (x, tapped, cache), None

            body = jax.checkpoint(run, policy=KEPT[config.remat], prevent_cse=False)
            numbered = jnp.arange(layers), params
            x, tapped, cache = lax.scan(body, (x, tapped, cache), numbered, unroll=config.unroll)[0]
            if taps is not None:  # drop the shared last slot
                tapped = jax.tree.map(lambda found: found[:-1], tapped)
            return x, tapped, cache

        return run_layers, params


def _gathered(params: Any, config: Architecture) -> Any:
    """One layer's weights for computation: all-gathered over `fsdp`, matrices cast."""
    exchanged = config.gradient_sum == "all_to_all"

    def of_leaf(path, w):
        spec = P(*spec_of(path, w.ndim, LAYERS)[1:])  # without the axis L
        if "fsdp" not in spec:
            return w
        return gather_weight(w, config.compute_dtype, spec, exchanged)

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def matrix(config: Architecture, rngs: nnx.Rngs, rows: int, columns: int) -> nnx.Param:
    """A matrix drawn from N(0, init_stddev²), in fp32."""
    draw = jax.random.normal(rngs.params(), (rows, columns), jnp.float32)
    return nnx.Param(config.init_stddev * draw)

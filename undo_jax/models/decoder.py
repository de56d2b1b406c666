"""The decoder of all families in Flax NNX, configured by an `Architecture`, and its sharding.

Layers are stacked along a leading axis and run by `lax.scan`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.models.activations import (
    OF_TAPPED,
    StackedEdits,
    check_prefix,
    edit,
    empty_slots,
    record,
    stack,
)
from undo_jax.models.architecture import Architecture
from undo_jax.models.layer import Cache, Layer, Norm, Span, matrix, slides
from undo_jax.ops.embedding import lookup
from undo_jax.runtime.collectives import gather_weight, on_devices
from undo_jax.runtime.mesh import BATCH
from undo_jax.runtime.sharding import match_spec, match_specs, pad_rows
from undo_jax.types import Edits, Key, Rules, States, Tapped, Taps, TokenIds

LAYERS: Rules = (
    (r"attention/(query|key|value)$", P(None, "fsdp", "tensor")),
    (r"attention/output$", P(None, "tensor", "fsdp")),
    (r"mlp/(gate|up)$", P(None, "fsdp", "tensor")),
    (r"mlp/down$", P(None, "tensor", "fsdp")),
    (r"(norm|bias|lora_a|lora_b|lora_key)$", P()),
)
SHARDING: Rules = ((r"(embedding|head)$", P(("tensor", "fsdp"))), *LAYERS)
SAVED = {  # what the backward pass saves of a layer, by remat policy; never gathered weights
    "none": lambda primitive, *_, **__: primitive.name != "linear_call",
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive.name == "pallas_call",
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """Maps tokens to hidden states. The head uses the embedding unless it has its own table."""

    def __init__(self, config: Architecture, key: Key):
        self.config = config
        embedding_key, layers_key = jax.random.split(key)
        self.embedding = matrix(config, nnx.Rngs(embedding_key), config.vocabulary, config.width)
        make = nnx.vmap(lambda key: Layer(config, nnx.Rngs(key)), in_axes=0, out_axes=0)
        self.layers = make(jax.random.split(layers_key, config.layers))
        self.final = Norm(config, config.width)
        head = nnx.Rngs(jax.random.fold_in(embedding_key, 1)) if config.own_head else None
        self.head = head and matrix(config, head, config.vocabulary, config.width)

    def activations(self, tokens: TokenIds, layer: int) -> States:
        return self._forward(tokens, layer, None, Edits())[0]

    def __call__(
        self, tokens: TokenIds, taps: Taps | None = None, edits: Edits | None = None
    ) -> tuple[States, Tapped | None]:
        """Returns final hidden states and the tapped states."""
        x, tapped = self._forward(tokens, self.config.layers, taps, edits or Edits())
        return self.final(x), tapped

    def extend(
        self, cache: Cache, tokens: TokenIds, start: Int[Array, " B"]
    ) -> tuple[States, Cache]:
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        put = jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (at,)))
        cache = cache._replace(tokens=put(cache.tokens, tokens, start))
        x = self._embedded(tokens)
        run_layers, params = self._scan(self.config.layers, None, Edits())
        # few tokens take less memory than a layer's weights, which therefore stay sharded
        x, _, cache = run_layers(x, tokens, positions, params, StackedEdits(), cache)
        return self.final(x), cache

    def _document_starts(
        self, read: Int[Array, "B S"], positions: Int[Array, "#B T"]
    ) -> Int[Array, "#B T"]:
        """Returns the position at which the document of each position starts."""
        if self.config.document_start is None:
            return jnp.zeros_like(positions)
        indices = jnp.arange(read.shape[1])
        opened = lax.cummax(jnp.where(read == self.config.document_start, indices, 0), axis=1)
        return jnp.take_along_axis(opened, positions, axis=1)

    def _embedded(self, tokens: TokenIds) -> States:
        return self._scaled(lookup(self.embedding[...], tokens, self.config.compute_dtype))

    def _scaled(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Returns embeddings times √D, rounded to the compute dtype, where the family does so."""
        if not self.config.scaled_embedding:
            return x
        return x * jnp.asarray(math.sqrt(self.config.width), self.config.compute_dtype)

    def _forward(
        self, tokens: TokenIds, layers: int, taps: Taps | None, edits: Edits
    ) -> tuple[States, Tapped | None]:
        """Returns the residual stream after the first `layers` layers, and the tapped states."""
        # embed the tokens, after the prefix
        rows, time = tokens.shape
        before = 0 if edits.prefix is None else edits.prefix.shape[-2]
        positions = jnp.arange(before + time)[None]
        tokens = pad_rows(tokens)
        x = self._embedded(tokens)
        if edits.prefix is not None:
            x = self._prefixed(x, edits.prefix)
        # run the layers on each device's rows
        run_layers, params = self._scan(layers, taps, edits)
        stacked = stack(edits, before)
        inputs = P(BATCH), P(BATCH), P(), match_specs(params, LAYERS), stacked.specs
        outputs = P(BATCH), None if taps is None else OF_TAPPED, None
        mapped = on_devices(run_layers, inputs, outputs, BATCH)
        x, tapped, _ = mapped(x, tokens, positions, params, stacked)
        # cut off padding rows and the prefix
        if tapped is not None:
            tapped = jax.tree.map(lambda states: states[:, :rows, before:], tapped)
        return x[:rows, before:], tapped

    def _prefixed(self, x: States, prefix: Array) -> Float[Array, "B S D"]:
        """Prepends the prefix. Raises ValueError if attention ends at the start of a document."""
        check_prefix(self.config)
        prefix = self._scaled(prefix.astype(x.dtype))
        prefix = pad_rows(prefix) if prefix.ndim == 3 else prefix[None]
        prefix = jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape[1:]))
        return jnp.concatenate([prefix, x], axis=1)

    def _scan(self, layers: int, taps: Taps | None, edits: Edits) -> tuple[Callable, Any]:
        """Returns a function that runs the first `layers` layers, and their parameters."""
        config = self.config
        graph, params = nnx.split(self.layers)
        params = jax.tree.map(lambda w: w[:layers], nnx.to_pure_dict(params))

        def run_layers(x, tokens, positions, params, stacked, cache=None):
            read = tokens if cache is None else cache.tokens
            starts = self._document_starts(read, positions)
            x, tapped = edit(x, stacked, edits, 0), None
            if taps is not None:
                tapped = empty_slots(taps, x)
                tapped = tapped._replace(residual=record(tapped.residual, taps.residual, 0, x))

            def run(carry, indexed):
                (x, tapped, cache), (index, params) = carry, indexed
                params = _gathered(params, config) if cache is None else params
                span = Span(index, slides(config.sliding, index), starts, positions)
                x, mlp, cache = nnx.merge(graph, params)(x, span, cache)
                x = edit(x, stacked, edits, index + 1)
                if taps is not None:
                    tapped = Tapped(
                        record(tapped.residual, taps.residual, index + 1, x),
                        record(tapped.mlp, taps.mlp, index, mlp),
                    )
                return (x, tapped, cache), None

            body = jax.checkpoint(run, policy=SAVED[config.remat], prevent_cse=False)
            indexed = jnp.arange(layers), params
            x, tapped, cache = lax.scan(body, (x, tapped, cache), indexed, unroll=config.unroll)[0]
            if taps is not None:  # drop the shared last slot
                tapped = jax.tree.map(lambda slots: slots[:-1], tapped)
            return x, tapped, cache

        return run_layers, params


def _gathered(params: Any, config: Architecture) -> Any:
    """Returns one layer's weights for computation: all-gathered over `fsdp`, matrices cast."""
    exchanged = config.gradient_sum == "all_to_all"

    def gather(path, w):
        spec = P(*match_spec(path, w.ndim, LAYERS)[1:])  # without the axis L
        if "fsdp" not in spec:
            return w
        return gather_weight(w, config.compute_dtype, spec, exchanged)

    return jax.tree_util.tree_map_with_path(gather, params)

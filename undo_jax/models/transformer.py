"""A decoder as an `LM`: pure functions of a pytree of plain dicts.

The Flax NNX module is merged and split inside these functions; nothing outside sees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.checks import check_choice
from undo_jax.models import hf_config_fields
from undo_jax.models.activations import check_taps
from undo_jax.models.architecture import Architecture
from undo_jax.models.decoder import SHARDING, Decoder
from undo_jax.models.layer import Cache
from undo_jax.runtime.sharding import path_name
from undo_jax.types import Edits, Key, Params, Rules, States, Tapped, Taps, TokenIds


@dataclass(frozen=True)
class Transformer(Architecture):
    """A decoder as an `LM`: its configuration, with functions of its parameters.

    Raises ValueError as `Architecture` does.
    """

    @property
    def softcap(self) -> float | None:
        return self.final_softcap

    @property
    def rules(self) -> Rules:
        return SHARDING

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.graphdef(nnx.eval_shape(lambda: Decoder(self, jax.random.key(0))))

    def init(self, key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(Decoder(self, key), nnx.Param))

    def rounded(self, params: Params) -> Params:
        """Returns the parameters with matrices in the compute dtype; norms stay in fp32."""

        def round_leaf(path, w):
            is_exact = path_name(path).endswith(("norm", "lora_key"))
            return w if is_exact else w.astype(self.compute_dtype)

        return jax.tree_util.tree_map_with_path(round_leaf, params)

    def hidden(self, params: Params, tokens: TokenIds, edits: Edits | None = None) -> States:
        check_taps(None, edits, self.layers)
        return nnx.merge(self._graph, params)(tokens, None, edits)[0]

    def tapped(
        self, params: Params, tokens: TokenIds, taps: Taps, edits: Edits | None = None
    ) -> tuple[States, Tapped]:
        check_taps(taps, edits, self.layers)
        return nnx.merge(self._graph, params)(tokens, taps, edits)

    def final(self, params: Params, residual: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return nnx.merge(self._graph, params).final(residual)

    def activations(self, params: Params, tokens: TokenIds, layer: int) -> States:
        if not 0 <= layer <= self.layers:
            raise ValueError(f"layer {layer}: this model has layers 0 to {self.layers}")
        return nnx.merge(self._graph, params).activations(tokens, layer)

    def cache_rules(self, tensor: int) -> Rules:
        rows, heads = ("data", "fsdp"), None if self.kv_heads % tensor else "tensor"
        return (r"tokens$", P(rows)), (r"(keys|values)$", P(None, rows, None, heads))

    def empty_cache(self, batch: int, size: int) -> Cache:
        shape = self.layers, batch, size, self.kv_heads, self.head_width
        keys, values = (jnp.zeros(shape, self.compute_dtype) for _ in range(2))
        return Cache(jnp.zeros((batch, size), jnp.int32), keys, values)

    def extend(
        self, params: Params, cache: Cache, tokens: TokenIds, start: Int[Array, " B"]
    ) -> tuple[States, Cache]:
        return nnx.merge(self._graph, params).extend(cache, tokens, start)

    def table(self, params: Params) -> Float[Array, "V D"]:
        return params["head" if self.own_head else "embedding"]

    def keeping(self, every: int) -> "Transformer":
        """Returns the model of layers 0, every, 2 · every, ...; each keeps its window, if any."""
        slides = hf_config_fields.sliding_layers(self)[::every]
        window, sliding = self.window if any(slides) else None, hf_config_fields.period(slides)
        return replace(self, layers=len(slides), sliding=sliding, window=window)

    def forward_flops(self, time: int) -> float:
        """Returns FLOPs per token of a forward pass over rows of `time` tokens, head included."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        per_layer = 2 * self.width * (queries + keys) + 3 * self.width * self.feed_forward
        per_layer += 2 * queries * time  # scores, weighted sum; unmasked
        if self.adapters is not None:
            sizes = {"query": queries, "key": keys, "value": keys, "output": queries}
            outputs = [sizes.get(name, self.feed_forward) for name in self.adapters.targets]
            per_layer += self.adapters.rank * sum(self.width + size for size in outputs)
        return 2.0 * (self.layers * per_layer + self.vocabulary * self.width)


def choose_preset(presets: Mapping[str, Transformer], name: str, **changes: Any) -> Transformer:
    """Returns one of a family's presets, with fields changed.

    Raises ValueError for an unknown name.
    """
    check_choice("preset", name, presets)
    return replace(presets[name], **changes)

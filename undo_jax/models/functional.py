"""From a Flax NNX module to the `LM` protocol: pure functions of a tree of plain dicts."""

from dataclasses import dataclass
from functools import cached_property

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from undo_jax.models import cache
from undo_jax.models.cache import Cache
from undo_jax.models.decoder import SHARDING, Decoder
from undo_jax.models.gemma2 import Gemma2
from undo_jax.models.taps import check
from undo_jax.sharding import path_name
from undo_jax.types import Edits, Key, Params, Rules, Tapped, Taps


@dataclass(frozen=True)
class Functional:
    """A Gemma-2 decoder as an `LM`. Two with equal configurations are equal."""

    config: Gemma2

    @property
    def softcap(self) -> float | None:
        return self.config.final_softcap

    @property
    def rules(self) -> Rules:
        return SHARDING

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.graphdef(nnx.eval_shape(lambda: Decoder(self.config, jax.random.key(0))))

    def init(self, key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(Decoder(self.config, key), nnx.Param))

    def rounded(self, params: Params) -> Params:
        """Matrices in the dtype of the arithmetic; norms' vectors are used in fp32."""

        def of_leaf(path, w):
            return w if path_name(path).endswith("norm") else w.astype(self.config.compute_dtype)

        return jax.tree_util.tree_map_with_path(of_leaf, params)

    @property
    def layers(self) -> int:
        return self.config.layers

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], edits: Edits | None = None
    ) -> Float[Array, "B T D"]:
        check(None, edits, self.layers)
        return nnx.merge(self._graph, params)(tokens, None, edits)[0]

    def tapped(
        self, params: Params, tokens: Int[Array, "B T"], taps: Taps, edits: Edits | None = None
    ) -> tuple[Float[Array, "B T D"], Tapped]:
        check(taps, edits, self.layers)
        return nnx.merge(self._graph, params)(tokens, taps, edits)

    def final(self, params: Params, residual: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return nnx.merge(self._graph, params).final(residual)

    def activations(
        self, params: Params, tokens: Int[Array, "B T"], layer: int
    ) -> Float[Array, "B T D"]:
        if not 0 <= layer <= self.config.layers:
            raise ValueError(f"layer {layer}: this model has layers 0 to {self.config.layers}")
        return nnx.merge(self._graph, params).activations(tokens, layer)

    def cache_rules(self, tensor: int) -> Rules:
        return cache.rules(self.config, tensor)

    def empty_cache(self, batch: int, size: int) -> Cache:
        return cache.empty(self.config, batch, size)

    def extend(
        self, params: Params, cache: Cache, tokens: Int[Array, "B T"], start: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T D"], Cache]:
        return nnx.merge(self._graph, params).extend(cache, tokens, start)

    def table(self, params: Params) -> Float[Array, "V D"]:
        return params["embedding"]

    def forward_flops(self, time: int) -> float:
        """FLOPs per token of a forward pass over rows of `time` tokens, head included."""
        c = self.config
        per_layer = (
            2 * c.width * c.head_width * (c.heads + c.kv_heads) + 3 * c.width * c.feed_forward
        )
        attended = 2 * c.heads * c.head_width * time  # scores and their weighted sum, unmasked
        return 2.0 * (c.layers * (per_layer + attended) + c.vocabulary * c.width)

"""A model family in one file: a token sees the mean of all before it, not their order."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from undo_jax.types import Edits, Tapped


class Seen(NamedTuple):
    sums: jax.Array  # [B, S, D]: of the embeddings up to each position


@dataclass(frozen=True)
class Bag:
    vocabulary: int
    width: int
    layers: int = 1
    softcap: float | None = None
    rules = (("", P()),)

    def init(self, key):
        keys = jax.random.split(key)
        stddev = self.width**-0.5
        table = stddev * jax.random.normal(keys[0], (self.vocabulary, self.width))
        mlp = stddev * jax.random.normal(keys[1], (self.layers, self.width, self.width))
        return {"embedding": table, "layers": {"mlp": mlp}}

    def rounded(self, params):
        return params

    def _run(self, params, means, taps=None, edits=None, layers=None):
        edits = edits or Edits()
        if edits != Edits():
            raise ValueError("a bag of words takes no edits")
        states, activations = [means], []
        for matrix in params["layers"]["mlp"][:layers]:
            activations.append(jnp.tanh(states[-1] @ matrix))
            states.append(states[-1] + activations[-1])
        if taps is None:
            return states[-1]
        pick = lambda all_of, which: jnp.stack([all_of[i] for i in which])  # noqa: E731
        return states[-1], Tapped(
            *(
                pick(x, i) if i else None
                for x, i in ((states, taps.residual), (activations, taps.mlp))
            )
        )

    def _means(self, params, tokens):
        sums = jnp.cumsum(params["embedding"][tokens], axis=1)
        return sums / jnp.arange(1, tokens.shape[1] + 1)[:, None]

    def hidden(self, params, tokens, edits=None):
        return self._run(params, self._means(params, tokens), edits=edits)

    def tapped(self, params, tokens, taps, edits=None):
        return self._run(params, self._means(params, tokens), taps, edits)

    def activations(self, params, tokens, layer):
        return self._run(params, self._means(params, tokens), layers=layer)

    def final(self, params, residual):
        return residual

    def cache_rules(self, tensor):
        return (("", P()),)

    def empty_cache(self, batch, size):
        return Seen(jnp.zeros((batch, size + 1, self.width)))

    def extend(self, params, cache, tokens, start):
        before = jnp.take_along_axis(cache.sums, start[:, None, None], axis=1)
        sums = before + jnp.cumsum(params["embedding"][tokens], axis=1)
        put = jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (at + 1, 0)))
        places = start[:, None] + 1 + jnp.arange(tokens.shape[1])
        return self._run(params, sums / places[..., None]), Seen(put(cache.sums, sums, start))

    def table(self, params):
        return params["embedding"]

    def forward_flops(self, time):
        return 2.0 * (self.layers * self.width**2 + self.vocabulary * self.width)

"""A model that compiles in no time: a token's state is a bounded sum of the embeddings so far."""

import jax
import jax.numpy as jnp


class RunningSums:
    """Its parameters are two tables, [V, D] each; what it predicts depends on all tokens before."""

    softcap = 5.0

    def __init__(self, vocabulary: int, width: int = 8):
        self.shape = (vocabulary, width)

    def init(self, key):
        first, last = jax.random.split(key)
        return {
            "in": jax.random.normal(first, self.shape),
            "out": jax.random.normal(last, self.shape),
        }

    def hidden(self, params, tokens):
        return jnp.tanh(jnp.cumsum(params["in"][tokens], axis=1) / 4)

    def table(self, params):
        return params["out"]

    def rounded(self, params):
        return params

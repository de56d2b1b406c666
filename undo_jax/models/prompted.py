"""A language model that reads the same tokens before every row."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from undo_jax.models.activations import check_prefix
from undo_jax.models.wrappers import Wrapper, check_tokens
from undo_jax.types import LM, Edits, Params, States, Tapped, Taps, TokenIds


@dataclass(frozen=True)
class Prompted(Wrapper):
    """An `LM` with the parameters of `lm` that reads the token ids `prefix` before every row.

    Hidden states and taps are those of the row's tokens alone. Raises ValueError for ids that the
    model does not have, and for a model whose attention stays within documents.
    """

    prefix: tuple[int, ...]

    def __post_init__(self):
        check_tokens(self.lm, self.prefix)
        object.__setattr__(self, "prefix", tuple(map(int, self.prefix)))
        check_prefix(self.lm)

    def hidden(self, params: Params, tokens: TokenIds, edits: Edits | None = None) -> States:
        return self.lm.hidden(params, self._after(tokens), edits)[:, len(self.prefix) :]

    def tapped(
        self, params: Params, tokens: TokenIds, taps: Taps, edits: Edits | None = None
    ) -> tuple[States, Tapped]:
        hidden, tapped = self.lm.tapped(params, self._after(tokens), taps, edits)
        rest = slice(len(self.prefix), None)
        return hidden[:, rest], Tapped(*(states[:, :, rest] for states in tapped))

    def activations(self, params: Params, tokens: TokenIds, layer: int) -> States:
        return self.lm.activations(params, self._after(tokens), layer)[:, len(self.prefix) :]

    def _after(self, tokens: TokenIds) -> Int[Array, "B S"]:
        before = jnp.asarray(self.prefix, jnp.int32)
        before = jnp.broadcast_to(before, (tokens.shape[0], len(self.prefix)))
        return jnp.concatenate([before, tokens], axis=1)


def prompted(lm: LM, prefix: tuple[int, ...]) -> Any:
    """Returns the model with a prefix, or the model itself if `prefix` is empty."""
    return Prompted(lm, prefix) if prefix else lm

"""A model that reads the same tokens before every row."""

from dataclasses import dataclass
from typing import Any, NoReturn

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from undo_jax.types import LM, Edits, Params, Tapped, Taps


@dataclass(frozen=True)
class Prompted:
    """An `LM` with the parameters of `lm`, which first reads `prefix`, token ids, in every row.

    Hidden states and taps are of the row's tokens alone. It does not generate: what has a cache
    raises ValueError; so does a model whose attention stays within documents.
    """

    lm: Any
    prefix: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "prefix", tuple(map(int, self.prefix)))
        opens = getattr(self.lm, "document_start", None)
        if opens is not None:
            raise ValueError(
                f"a prefix and document_start={opens}: attention within documents does not reach "
                "what stands before, set document_start to none"
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "lm":
            raise AttributeError(name)
        return getattr(self.lm, name)

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], edits: Edits | None = None
    ) -> Float[Array, "B T D"]:
        return self.lm.hidden(params, self._after(tokens), edits)[:, len(self.prefix) :]

    def tapped(
        self, params: Params, tokens: Int[Array, "B T"], taps: Taps, edits: Edits | None = None
    ) -> tuple[Float[Array, "B T D"], Tapped]:
        hidden, found = self.lm.tapped(params, self._after(tokens), taps, edits)
        own = slice(len(self.prefix), None)
        return hidden[:, own], Tapped(*(states[:, :, own] for states in found))

    def activations(
        self, params: Params, tokens: Int[Array, "B T"], layer: int
    ) -> Float[Array, "B T D"]:
        return self.lm.activations(params, self._after(tokens), layer)[:, len(self.prefix) :]

    def _after(self, tokens: Int[Array, "B T"]) -> Int[Array, "B S"]:
        before = jnp.asarray(self.prefix, jnp.int32)
        before = jnp.broadcast_to(before, (tokens.shape[0], len(self.prefix)))
        return jnp.concatenate([before, tokens], axis=1)

    def _no_cache(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError("a prompted model does not generate: give the prefix with the prompt")

    empty_cache = extend = _no_cache


def prompted(lm: LM, prefix: tuple[int, ...]) -> Any:
    """The model with a prefix; without one, itself."""
    return Prompted(lm, prefix) if prefix else lm

"""Language models that wrap another one and read or change its activations."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from undo_jax.models.activations import check_prefix
from undo_jax.types import (
    Edits,
    Key,
    Params,
    Rules,
    States,
    Tapped,
    Taps,
    TokenIds,
    table_shape,
    used,
)


@dataclass(frozen=True)
class Wrapper:
    """An `LM` with the attributes of `lm`, except those that a subclass overrides.

    It does not generate text.
    """

    lm: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "lm":
            raise AttributeError(name)
        return getattr(self.lm, name)

    def _no_cache(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"a {type(self).__name__} model does not generate: ask the one inside it")

    empty_cache = extend = _no_cache


@dataclass(frozen=True)
class Lens(Wrapper):
    """A logit lens: the last norm and the head follow `layer` layers (arXiv 2409.18025).

    With all layers it is the model itself. Raises ValueError for more layers than the model has.
    """

    layer: int

    def __post_init__(self):
        check_layer(self.lm, self.layer)

    def hidden(self, params: Params, tokens: TokenIds, edits: Edits | None = None) -> States:
        return self.tapped(params, tokens, Taps(), edits)[0]

    def tapped(
        self, params: Params, tokens: TokenIds, taps: Taps, edits: Edits | None = None
    ) -> tuple[States, Tapped]:
        if not (taps.residual or taps.mlp or edits):  # then the other layers need not run
            states = self.lm.activations(params, tokens, self.layer)
            return self.lm.final(params, states), Tapped(states[None][:0], states[None][:0])
        places = tuple(dict.fromkeys((*taps.residual, self.layer)))  # the lens's own layer, too
        tapped = self.lm.tapped(params, tokens, taps._replace(residual=places), edits)[1]
        hidden = self.lm.final(params, tapped.residual[places.index(self.layer)])
        return hidden, tapped._replace(residual=tapped.residual[: len(taps.residual)])


@dataclass(frozen=True)
class WrapperWithParams(Wrapper):
    """A wrapper with parameters of its own beside those of `lm`, which are its "model".

    Its own parameters are replicated over the mesh and stay in fp32.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its own parameters, by name; fresh ones are zeros."""
        raise NotImplementedError

    @property
    def rules(self) -> Rules:
        return ((r"^(?!model/)", P()), *self.lm.rules)

    def init(self, key: Key) -> Params:
        zeros = {name: jnp.zeros(shape) for name, shape in self.shapes.items()}
        return {**zeros, "model": self.lm.init(key)}

    def rounded(self, params: Params) -> Params:
        return {**params, "model": self.lm.rounded(params["model"])}

    def table(self, params: Params) -> Float[Array, "V D"]:
        return self.lm.table(params["model"])

    def final(self, params: Params, residual: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.lm.final(params["model"], residual)

    def activations(self, params: Params, tokens: TokenIds, layer: int) -> States:
        return self.tapped(params, tokens, Taps(residual=(layer,)))[1].residual[0]

    def hidden(self, params: Params, tokens: TokenIds, edits: Edits | None = None) -> States:
        return self.lm.hidden(params["model"], tokens, self.edits(params, edits))

    def tapped(
        self, params: Params, tokens: TokenIds, taps: Taps, edits: Edits | None = None
    ) -> tuple[States, Tapped]:
        return self.lm.tapped(params["model"], tokens, taps, self.edits(params, edits))

    def edits(self, params: Params, edits: Edits | None) -> Edits | None:
        """Returns `edits` with the wrapper's own edits added."""
        return edits


@dataclass(frozen=True)
class Probed(WrapperWithParams):
    """A linear probe: a separate table, "probe", reads the states after `layer` layers.

    States are divided by their root mean square. Raises ValueError as `Lens` does.
    """

    layer: int

    def __post_init__(self):
        check_layer(self.lm, self.layer)

    @property
    def softcap(self) -> None:
        return None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"probe": table_shape(self.lm).shape}

    def table(self, params: Params) -> Float[Array, "V D"]:
        return params["probe"]

    def hidden(self, params: Params, tokens: TokenIds, edits: Edits | None = None) -> States:
        if edits:
            taps = Taps(residual=(self.layer,))
            x = self.lm.tapped(params["model"], tokens, taps, edits)[1].residual[0]
        else:
            x = self.lm.activations(params["model"], tokens, self.layer)
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class Ablated(WrapperWithParams):
    """A model that removes a direction from its residual stream after some layers.

    The parameter "directions" has one row for each place in `removed_after`, which are counted as
    in `Taps.residual`.
    """

    removed_after: tuple[int, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"directions": (len(self.removed_after), table_shape(self.lm).shape[1])}

    def edits(self, params: Params, edits: Edits | None) -> Edits:
        directions = dict(zip(self.removed_after, params["directions"], strict=True))
        edits = edits or Edits()
        return edits._replace(remove={**directions, **edits.remove})


@dataclass(frozen=True)
class SoftPrompted(WrapperWithParams):
    """A model that reads `length` trained embeddings, its "prompt", before every row.

    Hidden states and taps are those of the row's tokens alone. Raises ValueError for fewer than one
    vector, and for a model whose attention stays within documents.
    """

    length: int

    def __post_init__(self):
        if type(self.length) is not int or self.length < 1:
            raise ValueError(f"length={self.length!r}: give a whole number of vectors above 0")
        check_prefix(self.lm)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (self.length, table_shape(self.lm).shape[1])}

    def edits(self, params: Params, edits: Edits | None) -> Edits:
        """Returns `edits` with the prompt as prefix. Raises ValueError for another prefix."""
        edits = edits or Edits()
        if edits.prefix is not None:
            raise ValueError("a soft prompt and another prefix: give one of them")
        return edits._replace(prefix=params["prompt"])


def check_layer(lm: Any, layer: Any) -> None:
    """Raises ValueError unless `layer` is from 0 to the model's number of layers."""
    if type(layer) is not int or not 0 <= layer <= lm.layers:
        raise ValueError(f"layer={layer!r}: this model has 0 to {lm.layers}")


def check_tokens(lm: Any, tokens: Any) -> None:
    """Raises ValueError unless `tokens` are rows of token ids of the model."""
    try:
        ids = np.asarray(tokens)
    except ValueError:
        raise ValueError("tokens: give rows of one length") from None
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"tokens: {ids.flat[0]!r}: give whole numbers, ids of tokens")
    count = _count_ids(lm)
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        wrong = next(token for token in ids.flat if not 0 <= token < count)
        raise ValueError(f"tokens: {wrong}: this model has ids from 0 to {count - 1}")


@cache  # attacks build models again and again
def _count_ids(lm: Any) -> int:
    """Returns how many token ids a model has."""
    return used(lm) or table_shape(lm).shape[0]

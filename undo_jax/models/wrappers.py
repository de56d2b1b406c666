"""Language models around another one: they read or change what is inside it."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.types import Edits, Key, Params, Rules, Tapped, Taps, table_shape, used


@dataclass(frozen=True)
class Around:
    """An `LM` with all that `lm` has and a subclass does not override. It does not generate."""

    lm: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "lm":
            raise AttributeError(name)
        return getattr(self.lm, name)

    def _no_cache(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"a {type(self).__name__} model does not generate: ask the one inside it")

    empty_cache = extend = _no_cache


@dataclass(frozen=True)
class Lens(Around):
    """A logit lens: the last norm and the head, right after `layer` layers (arXiv 2409.18025).

    With as many layers as there are, it is the model itself. Raises ValueError for a layer that the
    model does not have.
    """

    layer: int

    def __post_init__(self):
        check_layer(self.lm, self.layer)

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], edits: Edits | None = None
    ) -> Float[Array, "B T D"]:
        return self.tapped(params, tokens, Taps(), edits)[0]

    def tapped(
        self, params: Params, tokens: Int[Array, "B T"], taps: Taps, edits: Edits | None = None
    ) -> tuple[Float[Array, "B T D"], Tapped]:
        if not (taps.residual or taps.mlp or edits):  # then the other layers need not run
            states = self.lm.activations(params, tokens, self.layer)
            return self.lm.final(params, states), Tapped(states[None][:0], states[None][:0])
        others = [place for place in taps.residual if place != self.layer]
        more = taps._replace(residual=(self.layer, *others))
        found = self.lm.tapped(params, tokens, more, edits)[1]
        order = [more.residual.index(place) for place in taps.residual]
        own = found._replace(residual=jnp.stack([found.residual[i] for i in order]))
        return self.lm.final(params, found.residual[0]), own if order else found


@dataclass(frozen=True)
class Beside(Around):
    """Its parameters are those of `lm`, as "model", and others beside them.

    The others are replicated over the mesh, and stay in fp32.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the others, by their names; fresh ones are zeros."""
        raise NotImplementedError

    @property
    def rules(self) -> Rules:
        return ((r"^(?!model/)", P()), *self.lm.rules)

    def init(self, key: Key) -> Params:
        own = {name: jnp.zeros(shape) for name, shape in self.shapes.items()}
        return {**own, "model": self.lm.init(key)}

    def rounded(self, params: Params) -> Params:
        return {**params, "model": self.lm.rounded(params["model"])}

    def table(self, params: Params) -> Float[Array, "V D"]:
        return self.lm.table(params["model"])

    def final(self, params: Params, residual: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.lm.final(params["model"], residual)

    def activations(
        self, params: Params, tokens: Int[Array, "B T"], layer: int
    ) -> Float[Array, "B T D"]:
        return self.tapped(params, tokens, Taps(residual=(layer,)))[1].residual[0]

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], edits: Edits | None = None
    ) -> Float[Array, "B T D"]:
        return self.lm.hidden(params["model"], tokens, self.edits(params, edits))

    def tapped(
        self, params: Params, tokens: Int[Array, "B T"], taps: Taps, edits: Edits | None = None
    ) -> tuple[Float[Array, "B T D"], Tapped]:
        return self.lm.tapped(params["model"], tokens, taps, self.edits(params, edits))

    def edits(self, params: Params, edits: Edits | None) -> Edits | None:
        """What it changes inside the model, beside what is asked for."""
        return edits


@dataclass(frozen=True)
class Probed(Beside):
    """A linear probe: a table of its own, "probe", that reads the states after `layer` layers.

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

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], edits: Edits | None = None
    ) -> Float[Array, "B T D"]:
        if edits:
            states = self.lm.tapped(params["model"], tokens, Taps((self.layer,)), edits)[1]
            x = states.residual[0]
        else:
            x = self.lm.activations(params["model"], tokens, self.layer)
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class Ablated(Beside):
    """A model that removes a direction from its residual stream after each of some layers.

    They are "directions", one for each of `removed_after`, counted as in `Taps.residual`.
    """

    removed_after: tuple[int, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"directions": (len(self.removed_after), table_shape(self.lm).shape[1])}

    def edits(self, params: Params, edits: Edits | None) -> Edits:
        own = dict(zip(self.removed_after, params["directions"], strict=True))
        edits = edits or Edits()
        return edits._replace(remove={**own, **edits.remove})


@dataclass(frozen=True)
class SoftPrompted(Beside):
    """A model that reads `length` vectors, its "prompt", before every row, as if embedded.

    Hidden states and taps are of the row's tokens alone. Raises ValueError for fewer than one
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
        """Raises ValueError for a prefix beside its own."""
        edits = edits or Edits()
        if edits.prefix is not None:
            raise ValueError("a soft prompt and another prefix: give one of them")
        return edits._replace(prefix=params["prompt"])


def check_layer(lm: Any, layer: Any) -> None:
    """Raises ValueError for a number of layers that a model does not have."""
    if type(layer) is not int or not 0 <= layer <= lm.layers:
        raise ValueError(f"layer={layer!r}: this model has 0 to {lm.layers}")


def check_tokens(lm: Any, tokens: Any) -> None:
    """Raises ValueError for what are no rows of token ids of a model."""
    try:
        found = np.asarray(tokens)
    except ValueError:
        raise ValueError("tokens: give rows of one length") from None
    count = _ids(lm)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"tokens: {found.flat[0]!r}: give whole numbers, ids of tokens")
    if found.size and (found.min() < 0 or found.max() >= count):
        wrong = next(token for token in found.flat if not 0 <= token < count)
        raise ValueError(f"tokens: {wrong}: this model has ids from 0 to {count - 1}")


@cache  # models are made from attacks again and again
def _ids(lm: Any) -> int:
    """How many ids of tokens a model has."""
    return used(lm) or table_shape(lm).shape[0]


def check_prefix(lm: Any) -> None:
    """Raises ValueError for a model whose attention does not reach what stands before a row."""
    opens = getattr(lm, "document_start", None)
    if opens is not None:
        raise ValueError(
            f"a prefix and document_start={opens}: attention within documents does not reach "
            "what stands before, set document_start to none"
        )

"""The vocabulary of the package: what a batch, a model, a loss and a noise are.

Axis legend, used in every shape comment and einsum:
  B batch   T time   S slots of keys   D model width   L layers   V vocabulary
  N query heads   K key/value heads   H head width   F feed-forward width   M members
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Key = jax.Array  # a typed PRNG key, jax.random.key(...)
Params = Any  # a pytree of plain dicts; leaves under "layers" are stacked, [L, ...]
Lazy = Callable[[], Params]  # parameters that are read or made when they are asked for
Cache = Any  # a pytree: what a model has read of each row, to go on from
Metrics = dict[str, Float[Array, ""]]
Rules = tuple[tuple[str, PartitionSpec], ...]  # (regular expression on the leaf's path, its spec)


class Rows(NamedTuple):
    """Packed rows: `targets[b, t]` is the token that follows `inputs[b, t]`.

    The weights of one batch sum to 1 over all its tokens on all devices, so a loss is a weighted
    *sum*. Splitting the batch over devices or accumulation steps then cannot change its value.

    `segments[b, t]` numbers the document that `inputs[b, t]` is part of: it changes where the next
    document of the row begins. None: each row is one document.
    """

    inputs: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    segments: Int[Array, "B T"] | None = None


class Packed(NamedTuple):
    """Rows as a stream gives them. A token's weight is that of predicting it; None: all count 1."""

    tokens: Int[Array, "B T+1"]
    weights: Float[Array, "B T+1"] | None = None  # of any scale; 0 is a token that does not count
    segments: Int[Array, "B T+1"] | None = None  # as in `Rows`


Batch = Mapping[str, Rows]  # e.g. {"retain": ..., "forget": ...}


class LM(Protocol):
    """A language model as pure functions of its parameters. Hashable: a static jit argument."""

    @property
    def softcap(self) -> float | None:
        """Logits are `softcap * tanh(hidden @ table.T / softcap)`; None leaves them as they are."""
        ...

    @property
    def rules(self) -> Rules:
        """How each parameter is sharded, in order of precedence."""
        ...

    def init(self, key: Key) -> Params:
        """Fresh fp32 parameters."""
        ...

    def rounded(self, params: Params) -> Params:
        """The parameters as the arithmetic reads them: what every pass would round is rounded.

        Models that are not trained take less memory so, and compute the same.
        """
        ...

    def hidden(self, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Final hidden states, after the last norm; logits are never formed here."""
        ...

    def activations(
        self, params: Params, tokens: Int[Array, "B T"], layer: int
    ) -> Float[Array, "B T D"]:
        """The residual stream after the first `layer` layers (0 is the scaled embedding)."""
        ...

    def cache_rules(self, tensor: int) -> Rules:
        """How a cache is sharded where the `tensor` axis has that many devices."""
        ...

    def empty_cache(self, batch: int, size: int) -> Cache:
        """Room for `size` tokens a row; nothing is read yet."""
        ...

    def extend(
        self, params: Params, cache: Cache, tokens: Int[Array, "B T"], start: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states of tokens that stand at start, start + 1, ... of each row.

        All before `start` must have been read, and the cache must have room for the last token.
        What was read from `start` on is forgotten, so rows may be padded at their end.
        """
        ...

    def table(self, params: Params) -> Float[Array, "V D"]:
        """The output embedding."""
        ...

    def forward_flops(self, time: int) -> float:
        """FLOPs per token of a forward pass over rows of `time` tokens, head included."""
        ...


@cache
def shapes(lm: LM) -> Params:
    """The parameters of a model as shapes and dtypes, traced once."""
    return jax.eval_shape(lambda: lm.init(jax.random.key(0)))  # runs nothing, the key neither


class Frozen(NamedTuple):
    """A reference model: never updated, no gradient, its parameters an argument of the jitted step.

    They are `lm.rounded`. `lm` is static, so a `Frozen` is built inside the step and not passed
    through jit.
    """

    lm: LM
    params: Params


Refs = Mapping[str, Frozen]  # e.g. {"teacher": ...}


class Loss(Protocol):
    """A training objective: an unlearning method, distillation, plain language modelling."""

    def __call__(
        self, lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
    ) -> tuple[Float[Array, ""], Metrics]: ...


class Noise(Protocol):
    """Damage of strength `alpha` in [0, 1]; 0 must return the parameters unchanged."""

    def __call__(
        self, lm: LM, key: Key, params: Params, alpha: Float[Array, ""] | float
    ) -> Params: ...

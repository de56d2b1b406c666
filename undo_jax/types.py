"""The types of the package: batches, language models, losses and noises.

Axis legend, used in every shape comment and einsum:
  B batch   T time   S positions of keys   D model width   L layers   V vocabulary
  N query heads   K key/value heads   H head width   F feed-forward width   M slots of a population
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Key = jax.Array  # a typed PRNG key, jax.random.key(...)
Params = Any  # a pytree of plain dicts; leaves under "layers" are stacked, [L, ...]
Lazy = Callable[[], Params]  # parameters that are loaded or computed when called
Cache = Any  # a pytree, e.g. a key/value cache
TokenIds = Int[Array, "B T"]
States = Float[Array, "B T D"]  # of a model: hidden states, or its residual stream
Metrics = dict[str, Float[Array, ""]]
Scores = Mapping[str, float]  # of one model, by the metrics' names
Marked = TypeVar("Marked", bound=Callable)
Rules = tuple[tuple[str, PartitionSpec], ...]  # (regular expression for the leaf's path, its spec)


@dataclass(frozen=True)
class Metric:
    """What a score measures, which direction is better, and when it is computed.

    `at` is "evaluation" for scores that are computed at every evaluation, "end" for those of the
    finished model, and "comparison" for those that compare the finished model with the oracle.
    """

    label: str
    higher_is_better: bool
    unit: str = ""  # e.g. nats/token
    at: Literal["evaluation", "end", "comparison"] = "evaluation"


class Rows(NamedTuple):
    """Packed rows: `targets[b, t]` is the token that follows `inputs[b, t]`.

    The weights of one batch sum to 1 over all its tokens on all devices, so a loss is a weighted
    *sum*. Splitting the batch over devices or accumulation steps then cannot change its value.

    `segments[b, t]` is the number of the document, within its row, that `inputs[b, t]` belongs to.
    None: each row is one document.

    `states[b, t]` is the teacher's final hidden state at `inputs[b, t]`, for a teacher of which
    only the head is at hand, see `undo_jax.models.head_only`.
    """

    inputs: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    states: Float[Array, "B T D"] | None = None


class Packed(NamedTuple):
    """Rows as a stream yields them, each [B, T+1]. A weight is for predicting its own token."""

    tokens: Any  # int32
    weights: Any = None  # float32 of any scale; 0: the token does not count; None: all 1
    segments: Any = None  # int32, as in `Rows`
    states: Any = None  # [B, T, D], as in `Rows`


Batch = Mapping[str, Rows]  # e.g. {"retain": ..., "forget": ...}


class Taps(NamedTuple):
    """Which inner states a forward pass also returns; layers are counted from 0."""

    residual: Sequence[int] = ()  # the residual stream after so many layers: 0, the scaled
    # embedding, to L, the state before the last norm
    mlp: Sequence[int] = ()  # the output of the MLP of layers 0 to L - 1, before any norm after it


class Tapped(NamedTuple):
    """The tapped states in the order of the taps, in the compute dtype."""

    residual: Float[Array, "n B T D"]
    mlp: Float[Array, "n B T D"]


class Edits(NamedTuple):
    """Changes to a forward pass: a pytree of arrays, which may be traced and differentiated.

    `remove` and `add` index the residual stream as `Taps.residual` does; a tap at the same place
    returns the edited stream.
    """

    remove: Mapping[int, Float[Array, " D"]] = {}  # x − (x·u) u / ‖u‖²; x if u is zero
    add: Mapping[int, Array] = {}  # then x + a: [D], or what broadcasts to [B, T, D]
    prefix: Array | None = None  # [P, D] or [B, P, D]: embeddings, scaled as those of tokens are,
    # that stand before the tokens. Hidden states and taps are of the tokens alone


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
        """Returns fresh fp32 parameters."""
        ...

    def rounded(self, params: Params) -> Params:
        """Returns the parameters in the dtypes in which they are used, e.g. matrices in bf16.

        A frozen model then takes less memory and computes the same.
        """
        ...

    @property
    def layers(self) -> int:
        """Number of layers."""
        ...

    def hidden(self, params: Params, tokens: TokenIds, edits: Edits | None = None) -> States:
        """Returns final hidden states, after the last norm; logits are never formed here.

        Raises:
            ValueError: for edits of layers that the model does not have, and for a prefix if
                attention ends at the start of a document.
        """
        ...

    def tapped(
        self, params: Params, tokens: TokenIds, taps: Taps, edits: Edits | None = None
    ) -> tuple[States, Tapped]:
        """Returns `hidden` and the tapped states of the same pass. Raises what `hidden` raises."""
        ...

    def final(self, params: Params, residual: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the last norm to a residual state; to an earlier one it gives a logit lens."""
        ...

    def activations(self, params: Params, tokens: TokenIds, layer: int) -> States:
        """Returns the residual stream after the first `layer` layers (0: the scaled embedding)."""
        ...

    def cache_rules(self, tensor: int) -> Rules:
        """Returns how a cache is sharded over a `tensor` axis of that size."""
        ...

    def empty_cache(self, batch: int, size: int) -> Cache:
        """Returns an empty cache for `size` tokens per row."""
        ...

    def extend(
        self, params: Params, cache: Cache, tokens: TokenIds, start: Int[Array, " B"]
    ) -> tuple[States, Cache]:
        """Returns final hidden states of tokens at positions start, start + 1, ... of each row.

        The cache must hold all tokens before `start`, and have room for the new ones. Entries from
        `start` on are overwritten, so rows may be padded at their end.
        """
        ...

    def table(self, params: Params) -> Float[Array, "V D"]:
        """Returns the output embedding."""
        ...

    def forward_flops(self, time: int) -> float:
        """Returns FLOPs per token of a forward pass over rows of `time` tokens, head included."""
        ...


@cache
def shapes(lm: LM) -> Params:
    """Returns the parameters of a model as shapes and dtypes, traced once."""
    return jax.eval_shape(lambda: lm.init(jax.random.key(0)))  # traces only, also the key


def parameters(lm: LM) -> int:
    """Returns the number of parameters of a model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(lm)))


@cache
def rounded_shapes(lm: LM) -> Params:
    """Returns `lm.rounded` parameters as shapes and dtypes."""
    return jax.eval_shape(lm.rounded, shapes(lm))


def used(lm: LM) -> int | None:
    """Returns the vocabulary size of an LM without padding rows, or None if there are none.

    It is the attribute `used`, if the LM has one. Rows of the table from there on are padding, and
    have no probability.
    """
    return getattr(lm, "used", None)


def table_shape(lm: LM) -> jax.ShapeDtypeStruct:
    """Returns shape [V, D] and dtype of the output embedding, rounded as in `lm.rounded`."""
    return jax.eval_shape(lm.table, rounded_shapes(lm))


class Frozen(NamedTuple):
    """A reference model, which is never updated and has no gradient.

    Its parameters are `lm.rounded`, and an argument of the jitted step. `lm` is static, so a
    `Frozen` is built inside the step and not passed through jit.
    """

    lm: LM
    params: Params


Refs = Mapping[str, Frozen]  # e.g. {"teacher": ...}


class Loss(Protocol):
    """A training objective: an unlearning method, distillation, plain language modelling."""

    def __call__(
        self, lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
    ) -> tuple[Float[Array, ""], Metrics]: ...


def whole_batch(loss: Marked) -> Marked:
    """Marks a loss that is not a sum over rows, e.g. one that compares them.

    Accumulation over parts of a batch would change its value, and is refused.
    """
    loss.whole_batch = True  # type: ignore[attr-defined]
    return loss


def wants_whole_batch(loss: Any) -> bool:
    """Returns whether a loss, or one inside its `partial`s, is marked with `whole_batch`."""
    if isinstance(loss, partial):
        return any(map(wants_whole_batch, (loss.func, *loss.args, *loss.keywords.values())))
    return getattr(loss, "whole_batch", False) is True


def every_layer(loss: Marked) -> Marked:
    """Decorator for a loss that runs every layer of the model, forward and backward.

    The lower bound of a step's memory then counts the input of every layer, which is stored for
    the backward pass; for a loss without this mark it counts one.
    """
    loss.every_layer = True  # type: ignore[attr-defined]
    return loss


def runs_every_layer(loss: Any) -> bool:
    """Returns whether a loss, or the function of its `partial`, is marked with `every_layer`."""
    function = loss.func if isinstance(loss, partial) else loss
    return getattr(function, "every_layer", False) is True


class Noise(Protocol):
    """Noise of strength `alpha` in [0, 1]; 0 must return the parameters unchanged."""

    def __call__(
        self, lm: LM, key: Key, params: Params, alpha: Float[Array, ""] | float
    ) -> Params: ...

"""The configuration of a decoder-only transformer: its sizes, and what differs between families."""

import math
from dataclasses import dataclass, field, fields
from numbers import Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp

from undo_jax.checks import check_choice, check_share
from undo_jax.models.rope import LongRope, Scaling

POSITIVE = (
    "layers", "width", "feed_forward", "heads", "kv_heads", "head_width", "vocabulary", "window",
    "attention_scale", "attention_softcap", "final_softcap", "rope_theta", "local_theta",
    "norm_epsilon", "init_stddev", "unroll", "positions", "used", "rank", "alpha",
)  # fmt: skip
REMAT = "none", "dots", "full"
GRADIENT_SUMS = "reduce_scatter", "all_to_all"
MATRICES = "query", "key", "value", "output", "gate", "up", "down"  # of a layer


def since(default: Any, affects_values: bool = True) -> Any:
    """Declares a field that stored artifacts may lack because it is newer than they are.

    A fingerprint contains the field only where it differs from `default`, so that fingerprints of
    older artifacts stay the same. For `affects_values=False` see `execution`.
    """
    metadata = {"identity": "changed", "affects_values": affects_values}
    return field(default=default, metadata=metadata)


def execution(default: Any) -> Any:
    """Declares a field of how a model is computed, such as remat.

    Parameters may be imported into a model that differs from theirs in such fields alone.
    """
    return field(default=default, metadata={"affects_values": False})


@dataclass(frozen=True)
class Adapters:
    """Low-rank matrices beside those of the layers: x W + (α/r) x A B (LoRA, arXiv 2106.09685).

    With `dropout`, elements of the adapters' inputs are zeroed at that rate, and the others scaled
    by 1/(1 − rate), by keys that are parameters: see `undo_jax.attacks.lora`. Raises ValueError for
    numbers out of their range, and for no or unknown targets.
    """

    rank: int  # r, the width between their two matrices
    alpha: float  # their product counts alpha / r times
    targets: tuple[str, ...] = MATRICES  # the matrices that have adapters
    dropout: float = 0.0  # share of an adapter's inputs that are dropped

    def __post_init__(self):
        object.__setattr__(self, "rank", _number("rank", self.rank, int))
        object.__setattr__(self, "alpha", _number("alpha", self.alpha, float))
        object.__setattr__(self, "targets", tuple(self.targets))
        check_share("dropout", self.dropout)
        if not self.targets or not {*self.targets} <= {*MATRICES}:
            raise ValueError(f"targets={self.targets}: choose from {', '.join(MATRICES)}")


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder and how it is computed.

    Defaults of the fields in which families differ are Gemma-2's. Numbers are converted to the
    types of their fields: a soft-cap of 30 becomes 30.0.

    Raises:
        ValueError: A size is not positive, whole and finite, `kv_heads` does not divide `heads`,
            `window` is missing or no layer slides, or the dtype, activation, remat policy or sum of
            gradients is unknown.
    """

    layers: int  # number of blocks of attention and MLP
    width: int  # D, of the residual stream
    feed_forward: int  # F, width of the MLP
    heads: int  # N, heads of queries
    kv_heads: int  # K, heads of keys and values
    head_width: int  # H, width of a head
    vocabulary: int  # V, rows of the embedding
    attention_scale: float  # multiplies q·k before the softmax
    window: int | None  # of the layers that slide, in tokens; None: none slides
    attention_softcap: float | None = None  # bounds q·k by a tanh; None: no bound
    final_softcap: float | None = None  # bounds logits by a tanh; None: no bound
    document_start: int | None = None  # attention stays within the document this token id opens
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_epsilon: float = 1e-6  # added to the mean square in norms
    init_stddev: float = 0.02  # standard deviation of new matrices
    family: str | None = execution(None)  # the file in models/ with its Hugging Face names
    # auto: fp32 on CPU, else bf16
    dtype: Literal["auto", "float32", "bfloat16"] = execution("auto")
    # dots: the backward pass keeps matrix products and kernels' results
    remat: Literal["none", "dots", "full"] = execution("dots")
    # layers per iteration of the scan: more are faster for small models, slower to compile
    unroll: int = execution(1)
    sliding: tuple[bool, ...] = since((True, False))  # which layers slide, over and over
    local_theta: float | None = since(None)  # of layers that slide, unscaled; None: as the others
    rope_scaling: Scaling | None = since(None)
    # longest row that the model is meant for, in tokens; no computation depends on it
    positions: int = since(8192, affects_values=False)
    norm_offset: float = since(1.0)  # norms multiply by norm_offset + w
    after_norms: bool = since(True)  # also norms of what attention and MLP add to the stream
    qk_norm: bool = since(False)  # norms of each head's queries and keys
    qkv_bias: bool = since(False)  # biases of queries, keys and values
    output_bias: bool = since(False)  # a bias of attention's output
    activation: Literal["gelu", "silu"] = since("gelu")  # gelu in its tanh form
    scaled_embedding: bool = since(True)  # embeddings are multiplied by √D
    own_head: bool = since(False)  # the head has a table of its own, beside the embedding
    used: int | None = since(None)  # rows of the tables that are tokens, the first; None: all
    # how gradients are summed over fsdp: a reduce-scatter sends fp32, an all-to-all sends `dtype`
    gradient_sum: Literal["reduce_scatter", "all_to_all"] = since("reduce_scatter", False)
    adapters: Adapters | None = since(None)  # beside the layers' matrices

    def __post_init__(self):
        # convert and check each field by its type
        for declared in fields(self):
            name, value = declared.name, getattr(self, declared.name)
            kinds: tuple[Any, ...] = get_args(declared.type) or (declared.type,)
            if kinds[0] in (int, float) and not (value is None and NoneType in kinds):
                object.__setattr__(self, name, _number(name, value, kinds[0]))
            if declared.type is bool and type(value) is not bool:
                raise ValueError(f"{name}={value!r}: it must be True or False")
            if get_origin(declared.type) is Literal:
                check_choice(name, value, kinds)
        # check fields against each other
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width}: rotary positions need it to be even")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: "
                "every key/value head must serve the same number of query heads"
            )
        if self.used is not None and self.used > self.vocabulary:
            raise ValueError(f"used={self.used}: the tables have vocabulary={self.vocabulary} rows")
        self._check_layers()

    def _check_layers(self) -> None:
        """Raises ValueError where windows and rotary positions do not fit."""
        object.__setattr__(self, "sliding", tuple(self.sliding))
        if not self.sliding or not all(type(slides) is bool for slides in self.sliding):
            raise ValueError(f"sliding={self.sliding}: give True or False for each layer in turn")
        if any(self.sliding) != (self.window is not None):
            raise ValueError(
                f"window={self.window} with sliding={self.sliding}: layers that slide need a "
                "window, and without them it is None"
            )
        scaling, half = self.rope_scaling, self.head_width // 2
        if isinstance(scaling, LongRope) and {len(scaling.short), len(scaling.long)} != {half}:
            raise ValueError(
                f"rope_scaling has {len(scaling.short)} short and {len(scaling.long)} long "
                f"divisors: head_width={self.head_width} needs {half} of each"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        if self.dtype == "auto":
            return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
        return jnp.dtype(self.dtype)


def _number(name: str, value: Any, kind: type) -> Any:
    """Returns a field's value in its type. Raises ValueError if it cannot be converted."""
    number: Any = value if isinstance(value, Real) else math.nan
    if not abs(number) < 2**63 or kind(number) != number:
        noun = "whole number" if kind is int else "number"
        raise ValueError(f"{name}={value!r}: it must be a {noun} below 2^63")
    if name in POSITIVE and not number > 0:
        raise ValueError(f"{name}={value}: it must be positive")
    return kind(number)

"""The configuration of a decoder-only transformer: its sizes, and what differs between families."""

import math
from dataclasses import dataclass, field, fields
from numbers import Real
from types import NoneType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from undo_jax.models.rope import LongRope, Scaling

POSITIVE = (
    "layers", "width", "feed_forward", "heads", "kv_heads", "head_width", "vocabulary", "window",
    "attention_scale", "attention_softcap", "final_softcap", "rope_theta", "local_theta",
    "norm_epsilon", "init_stddev", "unroll", "positions", "used",
)  # fmt: skip
REMAT = "none", "dots", "full"
GRADIENT_SUMS = "reduce_scatter", "all_to_all"
MATRICES = "query", "key", "value", "output", "gate", "up", "down"  # of a layer


def since(default: Any) -> Any:
    """A field that old artifacts lack: their fingerprints stay, for they state it if it differs."""
    return field(default=default, metadata={"identity": "changed"})


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
        for name in ("rank", "alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a share of at least 0 and below 1")
        if not self.targets or not {*self.targets} <= {*MATRICES}:
            raise ValueError(f"targets={self.targets}: choose from {', '.join(MATRICES)}")


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder, and how it is computed; what families differ in are Gemma-2's values.

    Numbers are converted to the types of their fields: a soft-cap of 30 becomes 30.0. Raises
    ValueError for sizes that are not positive, not whole or not finite, head counts that do not
    divide, a window that no layer has or that is missing, and for an unknown dtype, activation,
    remat policy or sum of gradients.
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
    family: str | None = None  # the file in models/ with its Hugging Face names
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: fp32 on CPU, else bf16
    remat: Literal["none", "dots", "full"] = "dots"  # dots: keep products and kernels' results
    unroll: int = 1  # layers per iteration of the scan: faster for small models, slower to compile
    sliding: tuple[bool, ...] = since((True, False))  # which layers slide, over and over
    local_theta: float | None = since(None)  # of layers that slide, unscaled; None: as the others
    rope_scaling: Scaling | None = since(None)
    positions: int = since(8192)  # tokens of a row that it is meant for; nothing is computed of it
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
    gradient_sum: Literal["reduce_scatter", "all_to_all"] = since("reduce_scatter")
    adapters: Adapters | None = since(None)  # beside the layers' matrices

    def __post_init__(self):
        for each in fields(self):
            kinds, value = get_args(each.type) or (each.type,), getattr(self, each.name)
            if kinds[0] in (int, float) and not (value is None and NoneType in kinds):
                object.__setattr__(self, each.name, _number(each.name, value, kinds[0]))
            if kinds[0] is bool and each.type is bool and type(value) is not bool:
                raise ValueError(f"{each.name}={value!r}: it must be True or False")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width}: rotary positions need it to be even")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: "
                "every key/value head must serve the same number of query heads"
            )
        if self.used is not None and self.used > self.vocabulary:
            raise ValueError(f"used={self.used}: the tables have vocabulary={self.vocabulary} rows")
        for name, value, known in (
            ("dtype", self.dtype, ("auto", "float32", "bfloat16")),
            ("remat", self.remat, REMAT),
            ("gradient_sum", self.gradient_sum, GRADIENT_SUMS),
            ("activation", self.activation, ("gelu", "silu")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
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
    """A field's value in its type. Raises ValueError for one that cannot be converted."""
    number: Any = value if isinstance(value, Real) else math.nan
    if not abs(number) < 2**63 or kind(number) != number:
        wanted = "whole number" if kind is int else "number"
        raise ValueError(f"{name}={value!r}: it must be a {wanted} below 2^63")
    if name in POSITIVE and not number > 0:
        raise ValueError(f"{name}={value}: it must be positive")
    return kind(number)

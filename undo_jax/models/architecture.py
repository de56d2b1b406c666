"""The configuration of a decoder-only transformer: its sizes, and what differs between families."""

import math
from dataclasses import dataclass, field, fields
from numbers import Real
from types import NoneType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

POSITIVE = (
    "layers", "width", "feed_forward", "heads", "kv_heads", "head_width", "vocabulary", "window",
    "attention_scale", "attention_softcap", "final_softcap", "rope_theta", "norm_epsilon",
    "init_stddev", "unroll",
)  # fmt: skip
REMAT = "none", "dots", "full"
GRADIENT_SUMS = "reduce_scatter", "all_to_all"


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder, and how it is computed.

    Numbers are converted to the types of their fields: a soft-cap of 30 becomes 30.0. Raises
    ValueError for sizes that are not positive, not whole or not finite, head counts that do not
    divide and for an unknown dtype, remat policy or sum of gradients.
    """

    layers: int
    width: int  # D
    feed_forward: int  # F
    heads: int  # N
    kv_heads: int  # K
    head_width: int  # H
    vocabulary: int  # V
    attention_scale: float  # multiplies q·k
    window: int  # sliding window of even layers, in tokens; odd layers see everything
    attention_softcap: float | None = None
    final_softcap: float | None = None
    document_start: int | None = None  # attention stays within the document this token id opens
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    init_stddev: float = 0.02
    family: str | None = None  # the file in models/ with its Hugging Face names
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: fp32 on CPU, else bf16
    remat: Literal["none", "dots", "full"] = "dots"  # dots: keep products and kernels' results
    unroll: int = 1  # layers per iteration of the scan: faster for small models, slower to compile
    # how gradients are summed over fsdp: a reduce-scatter sends fp32, an all-to-all sends `dtype`
    gradient_sum: Literal["reduce_scatter", "all_to_all"] = field(
        default="reduce_scatter", metadata={"identity": False}
    )

    def __post_init__(self):
        for one in fields(self):
            kinds, value = get_args(one.type) or (one.type,), getattr(self, one.name)
            if kinds[0] in (int, float) and not (value is None and NoneType in kinds):
                object.__setattr__(self, one.name, _number(one.name, value, kinds[0]))
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width}: rotary positions need it to be even")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: "
                "every key/value head must serve the same number of query heads"
            )
        for name, value, known in (
            ("dtype", self.dtype, ("auto", "float32", "bfloat16")),
            ("remat", self.remat, REMAT),
            ("gradient_sum", self.gradient_sum, GRADIENT_SUMS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")

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

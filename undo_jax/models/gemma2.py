"""Gemma-2's architecture (arXiv 2408.00118) as a value, and its presets."""

import math
from dataclasses import dataclass, fields, replace
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


@dataclass(frozen=True)
class Gemma2:
    """The architecture. Defaults are Gemma-2 2B's; the presets change what the reference changes.

    Numbers take the types of their fields: a soft-cap of 30 is 30.0. Raises ValueError for sizes
    that are not positive, not whole or not finite, head counts that do not divide and for an
    unknown dtype or remat policy.
    """

    layers: int = 26
    width: int = 2304  # D
    feed_forward: int = 9216  # F
    heads: int = 8  # N
    kv_heads: int = 4  # K
    head_width: int = 256  # H
    vocabulary: int = 256_000  # V
    attention_scale: float = 256**-0.5  # query_pre_attn_scalar is 256 in all but 27B
    attention_softcap: float | None = 50.0
    final_softcap: float | None = 30.0
    window: int = 4096  # sliding window of the even layers; the odd ones see everything
    document_start: int | None = None  # attention stays within the document this token id opens
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    init_stddev: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the arithmetic; auto: fp32 on CPU
    remat: Literal["none", "dots", "full"] = "dots"  # keep matrix products and kernels' results
    unroll: int = 1  # layers per iteration of the scan: faster for small models, slower to compile

    def __post_init__(self):
        for field in fields(self):
            kinds, value = get_args(field.type) or (field.type,), getattr(self, field.name)
            if kinds[0] in (int, float) and not (value is None and NoneType in kinds):
                object.__setattr__(self, field.name, _number(field.name, value, kinds[0]))
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
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")

    @property
    def parameters(self) -> int:
        """How many there are; the embedding is the head's table, too."""
        attention = 2 * self.head_width * (self.heads + self.kv_heads)
        layer = self.width * (attention + 3 * self.feed_forward + 4)  # with four norms
        return self.width * (self.vocabulary + 1) + self.layers * layer

    @property
    def compute_dtype(self) -> jnp.dtype:
        if self.dtype == "auto":
            return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
        return jnp.dtype(self.dtype)


def _number(name: str, value: Any, kind: type) -> Any:
    """A field's value in its type. Raises ValueError for one that cannot be."""
    number: Any = value if isinstance(value, Real) else math.nan
    if not abs(number) < 2**63 or kind(number) != number:
        wanted = "whole number" if kind is int else "number"
        raise ValueError(f"{name}={value!r}: it must be a {wanted} below 2^63")
    if name in POSITIVE and not number > 0:
        raise ValueError(f"{name}={value}: it must be positive")
    return kind(number)


PRESETS = {
    "tiny": Gemma2(layers=2, width=48, feed_forward=96, heads=4, kv_heads=4, head_width=12,
                   attention_scale=12**-0.5, vocabulary=24, init_stddev=48**-0.5, remat="none",
                   unroll=2),
    "small": Gemma2(layers=4, width=128, feed_forward=512, heads=4, kv_heads=2, head_width=32,
                    attention_scale=32**-0.5, vocabulary=512, init_stddev=128**-0.5),
    "0.1B": Gemma2(layers=14, width=320, feed_forward=1280, head_width=128),
    "0.3B": Gemma2(layers=14, width=768, feed_forward=3072, head_width=128),
    "0.6B": Gemma2(layers=18, width=1024, feed_forward=4096, head_width=256),
    "0.9B": Gemma2(layers=22, width=1280, feed_forward=5120, head_width=256),
    "2B": Gemma2(),
    # config.json of google/gemma-2-9b and google/gemma-2-27b
    "9B": Gemma2(layers=42, width=3584, feed_forward=14336, heads=16, kv_heads=8),
    "27B": Gemma2(layers=46, width=4608, feed_forward=36864, heads=32, kv_heads=16, head_width=128,
                  attention_scale=144**-0.5),
}  # fmt: skip


def preset(name: str, **changes) -> Gemma2:
    """A named size, with any field changed. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)

"""Rotary position embeddings: the frequencies of all model families, and the rotation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Linear:
    """All frequencies are divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float  # how many times longer rows may be

    def __post_init__(self):
        _check(self)


@dataclass(frozen=True)
class Llama3:
    """Low frequencies are divided by `factor`, high ones stay (Llama 3.1, arXiv 2407.21783).

    Low are those of less than `low` turns in `original` tokens, high those of more than `high`;
    between them the divisor is a blend.
    """

    factor: float  # how many times longer rows may be
    low: float = 1.0  # turns in `original` tokens
    high: float = 4.0  # turns in `original` tokens
    original: int = 8192  # tokens of a row that the model was first trained for

    def __post_init__(self):
        _check(self)
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be the smaller one")


@dataclass(frozen=True)
class LongRope:
    """Each frequency has a divisor of its own (LongRoPE, arXiv 2402.13753).

    Rows of up to `original` tokens use `short`, longer ones `long`. Queries and keys of both are
    multiplied by √(1 + ln(maximum / original) / ln(original)).
    """

    short: tuple[float, ...]  # H / 2 numbers
    long: tuple[float, ...]
    original: int  # tokens of a row that the model was first trained for
    maximum: int  # tokens of a row that it was extended to

    def __post_init__(self):
        object.__setattr__(self, "short", tuple(self.short))
        object.__setattr__(self, "long", tuple(self.long))
        _check(self)
        if self.original < 2:
            raise ValueError(f"original={self.original}: LongRoPE needs at least 2 tokens")

    @property
    def multiplier(self) -> float:
        extended = max(1.0, self.maximum / self.original)
        return math.sqrt(1 + math.log(extended) / math.log(self.original))


Scaling = Linear | Llama3 | LongRope


def scaling_of(described: Mapping[str, Any] | None, where: Any) -> Scaling | None:
    """Returns the scaling that an artifact's config.json describes.

    Raises ValueError, which names the artifact `where`, for an invalid description.
    """
    if described is None:
        return None
    kinds = {kind.__name__: kind for kind in (Linear, Llama3, LongRope)}
    try:
        numbers = {name: value for name, value in described.items() if name != "type"}
        return kinds[described["type"]](**numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} holds a Transformer with rope_scaling={described!r}: delete it, and a run "
            "makes it again"
        ) from error


def frequencies(
    theta: float, half: int, scaling: Scaling | None = None, length: int = 0
) -> Float[Array, " half"]:
    """Returns radians per token of each rotated pair, in fp32.

    Args:
        theta: The base of the wavelengths.
        half: The number of rotated pairs, half the width of a head.
        scaling: How the frequencies are scaled; None: not at all.
        length: Tokens of a row, by which LongRoPE chooses its divisors.
    """
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if isinstance(scaling, Linear):
        return frequency / scaling.factor
    if isinstance(scaling, Llama3):
        turns = frequency * (scaling.original / (2 * math.pi))
        unscaled = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        return frequency * (unscaled + (1 - unscaled) / scaling.factor)
    if isinstance(scaling, LongRope):
        divisors = scaling.long if length > scaling.original else scaling.short
        return frequency / jnp.asarray(divisors, jnp.float32)
    return frequency


def rope(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "#B T"],
    frequency: Float[Array, " half"],
    multiplier: float = 1.0,
) -> Float[Array, "B T N H"]:
    """Rotates `x` by the angles positions · frequency, computed in fp32.

    Element i of the first half of H and element i of the second half are a pair. The result is
    multiplied by `multiplier`.
    """
    half = x.shape[-1] // 2
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if multiplier != 1:
        cos, sin = cos * multiplier, sin * multiplier
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, half)
    rotated = halves * jnp.stack([cos, cos], -2) + halves[..., ::-1, :] * jnp.stack([-sin, sin], -2)
    return rotated.reshape(x.shape).astype(x.dtype)


def _check(scaling: Any) -> None:
    """Raises ValueError for numbers that are not above 0, and for tokens that are not whole."""
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        numbers: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        kind: Any = int if field.type is int else Real
        if not all(isinstance(x, kind) and 0 < x < 2**63 for x in numbers):
            noun = "a whole number" if field.type is int else "numbers"
            raise ValueError(f"{field.name}={value!r}: rotary positions need {noun} above 0")

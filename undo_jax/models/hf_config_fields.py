"""What a Hugging Face config.json states, checked; and the same parts of a model as JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from undo_jax.models.architecture import Architecture
from undo_jax.models.rope import Linear, Llama3, LongRope, Scaling

LARGEST = 2**63  # bound of numbers in a configuration
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "feed_forward": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
}
SCALARS = {"norm_epsilon": "rms_norm_eps", "init_stddev": "initializer_range"}
_PARTIAL = "partial_rotary_factor"
_ORIGINAL = "original_max_position_embeddings"
_ROPES = {  # keys beside rope_theta and the type; "su" is an older name of longrope
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "longrope": ("short_factor", "long_factor", "factor", "attention_factor", _ORIGINAL),
    "su": ("short_factor", "long_factor"),
}
_SLIDES = {"sliding_attention": True, "full_attention": False}


def positive(file: epath.Path, content: Mapping[str, Any], key: str, whole: bool = False) -> Any:
    """A number above 0. Raises ValueError for anything else."""
    value: Any = content.get(key)
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 < value < LARGEST:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{file}: {key}={value!r} must be a {kind} above 0, and below 2^63")
    return value


def flag(file: epath.Path, content: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """True or false; the default where it is not stated. Raises ValueError for anything else."""
    value = default if content.get(key) is None else content[key]
    if type(value) is not bool:
        raise ValueError(f"{file}: {key}={value!r} must be true or false")
    return value


def fixed(file: epath.Path, content: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raises ValueError where a field has another value than the only one that is supported."""
    for key, value in only.items():
        if content.get(key) not in (None, value):
            raise ValueError(f"{file}: {key}={content[key]!r} is not supported: it must be {value}")


def rope(
    file: epath.Path, content: Mapping[str, Any], said: Any = None
) -> tuple[float, Scaling | None]:
    """Theta and scaling, of transformers 5 (`rope_parameters`) and 4; `said` stands for them.

    Raises ValueError for what is not supported.
    """
    said = said or content.get("rope_scaling") or content.get("rope_parameters") or {}
    kind = said.get("rope_type", said.get("type", "default")) if isinstance(said, dict) else None
    kind = kind if isinstance(kind, str) else None
    known = {"rope_theta", "rope_type", "type", _PARTIAL, *_ROPES.get(kind or "", ())}
    partial = said.get(_PARTIAL, content.get(_PARTIAL)) if kind in _ROPES else None
    if kind not in _ROPES or said.keys() - known or partial not in (None, 1):
        raise ValueError(
            f"{file}: rotary positions {said if partial in (None, 1) else {_PARTIAL: partial}} "
            f"are not supported: {', '.join(_ROPES)} are, of whole heads"
        )
    found = {**content, **said}
    theta = float(positive(file, found, "rope_theta"))
    if kind == "linear":
        return theta, Linear(float(positive(file, said, "factor")))
    if kind == "llama3":
        numbers = (float(positive(file, said, key)) for key in _ROPES[kind][:3])
        factor, low, high = numbers
        if not low < high:
            raise ValueError(f"{file}: low_freq_factor={low} must be below high_freq_factor={high}")
        return theta, Llama3(factor, low, high, _original(file, content, said))
    return theta, None if kind == "default" else _longrope(file, content, said)


def _longrope(file: epath.Path, content: Mapping[str, Any], said: Mapping[str, Any]) -> LongRope:
    lists = []
    for key in ("short_factor", "long_factor"):
        numbers = said.get(key)
        if not isinstance(numbers, list) or not all(
            type(x) in (int, float) and 0 < x < LARGEST for x in numbers
        ):
            raise ValueError(f"{file}: {key}={numbers!r} must be a list of numbers above 0")
        lists.append(tuple(float(x) for x in numbers))
    original = _original(file, content, said)
    maximum = positive(file, content, SIZES["positions"], whole=True)
    scaling = LongRope(*lists, original=original, maximum=maximum)
    for key, derived in (("factor", maximum / original), ("attention_factor", scaling.multiplier)):
        value = derived if said.get(key) is None else positive(file, said, key)
        if not math.isclose(value, derived, rel_tol=1e-6):
            raise ValueError(f"{file}: {key}={value} is not supported: it must be {derived}")
    return scaling


def _original(file: epath.Path, content: Mapping[str, Any], said: Mapping[str, Any]) -> int:
    """Beside the rotary positions, as Phi-3 has it, or among them; else all positions."""
    found = {**content, _ORIGINAL: content.get(_ORIGINAL) or said.get(_ORIGINAL)}
    key = SIZES["positions"] if found[_ORIGINAL] is None else _ORIGINAL
    return positive(file, found, key, whole=True)


def described_rope(theta: float, scaling: Scaling | None) -> dict[str, Any]:
    """`rope_parameters` of transformers 5."""
    said: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if isinstance(scaling, Linear):
        said |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3):
        numbers = scaling.factor, scaling.low, scaling.high, scaling.original
        said |= {"rope_type": "llama3", **dict(zip(_ROPES["llama3"], numbers, strict=True))}
    elif isinstance(scaling, LongRope):
        lists = {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        said |= {"rope_type": "longrope", **lists, _ORIGINAL: scaling.original}
    return said


def described_scaling(theta: float, scaling: Scaling | None) -> dict[str, Any] | None:
    """`rope_scaling` of transformers 4."""
    said = described_rope(theta, scaling)
    del said["rope_theta"]
    return said if scaling else None


def layer_types(
    file: epath.Path, content: Mapping[str, Any], layers: int
) -> tuple[bool, ...] | None:
    """Which layers slide, as `Architecture.sliding`; None where it is not stated.

    Raises ValueError for other kinds of layers, and another number of them.
    """
    said = content.get("layer_types")
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != layers or set(map(str, said)) - _SLIDES.keys():
        raise ValueError(
            f"{file}: layer_types={said} is not supported: give {' or '.join(_SLIDES)} for each "
            f"of {layers} layers"
        )
    return period([_SLIDES[kind] for kind in said])


def period(each: Sequence[bool]) -> tuple[bool, ...]:
    """The shortest beginning of a sequence that, over and over, gives all of it."""
    size = next(
        n for n in range(1, len(each) + 1) if all(x == each[i % n] for i, x in enumerate(each))
    )
    return tuple(each[:size])


def sliding(lm: Architecture) -> list[bool]:
    """Whether each layer slides."""
    return [lm.sliding[i % len(lm.sliding)] for i in range(lm.layers)]


def described_layers(lm: Architecture) -> list[str]:
    """`layer_types`."""
    kinds = {slides: kind for kind, slides in _SLIDES.items()}
    return [kinds[slides] for slides in sliding(lm)]


def check_heads(lm: Architecture) -> None:
    """Raises ValueError for a width that the heads do not divide."""
    if lm.width % lm.heads:
        raise ValueError(
            f"width={lm.width} is not a multiple of heads={lm.heads}, as transformers "
            "demands: it cannot be exported"
        )


def ids(stated: Mapping[str, Any], file: epath.Path) -> dict[str, Any]:
    """Ids of special tokens as a file states them. Raises ValueError for an invalid id."""
    for name, value in stated.items():
        several = value if isinstance(value, list) and name.startswith("eos") else [value]
        if value is not None and not all(type(i) is int and 0 <= i < LARGEST for i in several):
            raise ValueError(f"{file}: {name}={value!r} is no token id")
    return dict(stated)

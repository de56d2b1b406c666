"""The fields of a Hugging Face config.json: read and checked, and written from a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ConfigJson:
    """The fields of one config.json. Its methods raise ValueError, which names the file."""

    file: epath.Path
    fields: Mapping[str, Any]

    def updated(self, fields: Mapping[str, Any]) -> "ConfigJson":
        """Returns the configuration with these fields added or replaced."""
        return ConfigJson(self.file, {**self.fields, **fields})

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.file}: {message}")

    def positive(self, key: str, optional: bool = False, whole: bool = False) -> Any:
        """Returns a number above 0; None where an `optional` field is missing or null."""
        value: Any = self.fields.get(key)
        if optional and value is None:
            return None
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < LARGEST:
            noun = "whole number" if whole else "number"
            raise self.error(f"{key}={value!r} must be a {noun} above 0, and below 2^63")
        return value

    def count(self, key: str, optional: bool = False) -> Any:
        """Returns a whole number above 0; None where an `optional` field is missing or null."""
        return self.positive(key, optional, whole=True)

    def numbers(self, optional: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the fields of the model that `SIZES` and `SCALARS` name."""
        sizes = {field: self.count(key, key in optional) for field, key in SIZES.items()}
        return sizes | {field: self.positive(key) for field, key in SCALARS.items()}

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns a boolean, `default` where the field is missing or null."""
        value = default if self.fields.get(key) is None else self.fields[key]
        if type(value) is not bool:
            raise self.error(f"{key}={value!r} must be true or false")
        return value

    def check_fixed(self, supported: Mapping[str, Any]) -> None:
        """Raises ValueError where a field has another value than the only supported one."""
        for key, value in supported.items():
            if self.fields.get(key) not in (None, value):
                raise self.error(f"{key}={self.fields[key]!r} is not supported: it must be {value}")

    def layer_types(self) -> tuple[bool, ...] | None:
        """Returns which layers slide, as `Architecture.sliding`; None where it is not stated.

        Raises ValueError for other kinds of layers, and for another number of them.
        """
        kinds, layers = self.fields.get("layer_types"), self.count(SIZES["layers"])
        if kinds is None:
            return None
        if not isinstance(kinds, list) or len(kinds) != layers or {*map(str, kinds)} - {*_SLIDES}:
            raise self.error(
                f"layer_types={kinds} is not supported: give {' or '.join(_SLIDES)} for each "
                f"of {layers} layers"
            )
        return period([_SLIDES[kind] for kind in kinds])

    def rope(self, parameters: Any = None) -> tuple[float, Scaling | None]:
        """Returns theta and scaling of the rotary positions.

        They are read from `parameters`, else from `rope_scaling` (transformers 4) or
        `rope_parameters` (5). Raises ValueError for an unsupported kind.
        """
        places = parameters, self.fields.get("rope_scaling"), self.fields.get("rope_parameters")
        stated: Any = next(filter(None, places), {})
        kind = stated.get("rope_type", stated.get("type", "default")) if is_dict(stated) else None
        keys = _ROPES.get(kind) if isinstance(kind, str) else None
        partial = None if keys is None else stated.get(_PARTIAL, self.fields.get(_PARTIAL))
        allowed = {"rope_theta", "rope_type", "type", _PARTIAL, *(keys or ())}
        if keys is None or stated.keys() - allowed or partial not in (None, 1):
            raise self.error(
                f"rotary positions {stated if partial in (None, 1) else {_PARTIAL: partial}} "
                f"are not supported: {', '.join(_ROPES)} are, of whole heads"
            )
        theta = float(self.updated(stated).positive("rope_theta"))
        scaling = ConfigJson(self.file, stated)
        if kind == "default":
            return theta, None
        if kind == "linear":
            return theta, Linear(float(scaling.positive("factor")))
        if kind == "llama3":
            factor, low, high = (float(scaling.positive(key)) for key in keys[:3])
            if not low < high:
                raise self.error(f"low_freq_factor={low} must be below high_freq_factor={high}")
            return theta, Llama3(factor, low, high, self._original(stated))
        return theta, self._longrope(scaling)

    def _longrope(self, stated: "ConfigJson") -> LongRope:
        lists = []
        for key in ("short_factor", "long_factor"):
            numbers = stated.fields.get(key)
            if not isinstance(numbers, list) or not all(
                type(x) in (int, float) and 0 < x < LARGEST for x in numbers
            ):
                raise self.error(f"{key}={numbers!r} must be a list of numbers above 0")
            lists.append(tuple(float(x) for x in numbers))
        original, maximum = self._original(stated.fields), self.count(SIZES["positions"])
        scaling = LongRope(*lists, original=original, maximum=maximum)
        derived = {"factor": maximum / original, "attention_factor": scaling.multiplier}
        for key, expected in derived.items():
            value = expected if stated.fields.get(key) is None else stated.positive(key)
            if not math.isclose(value, expected, rel_tol=1e-6):
                raise self.error(f"{key}={value} is not supported: it must be {expected}")
        return scaling

    def _original(self, rope: Mapping[str, Any]) -> int:
        """Returns the length first trained for: of the file (Phi-3), `rope`, or all positions."""
        original = self.fields.get(_ORIGINAL) or rope.get(_ORIGINAL)
        key = SIZES["positions"] if original is None else _ORIGINAL
        return self.updated({_ORIGINAL: original}).count(key)


def is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def rope_parameters(theta: float, scaling: Scaling | None) -> dict[str, Any]:
    """Returns `rope_parameters` as transformers 5 reads it."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if isinstance(scaling, Linear):
        parameters |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3):
        numbers = scaling.factor, scaling.low, scaling.high, scaling.original
        parameters |= {"rope_type": "llama3", **dict(zip(_ROPES["llama3"], numbers, strict=True))}
    elif isinstance(scaling, LongRope):
        lists = {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        parameters |= {"rope_type": "longrope", **lists, _ORIGINAL: scaling.original}
    return parameters


def describe(lm: Architecture, architecture: str) -> dict[str, Any]:
    """Returns the fields of config.json that all families have; `architecture` names the class."""
    rope = rope_parameters(lm.rope_theta, lm.rope_scaling)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "architectures": [architecture],
        "model_type": lm.family,
        **{key: getattr(lm, field) for field, key in {**SIZES, **SCALARS}.items()},
        "rope_theta": lm.rope_theta,  # transformers 4
        "rope_scaling": scaling if lm.rope_scaling else None,
        "rope_parameters": rope,  # 5
        "attention_dropout": 0.0,
    }


def period(layers: Sequence[bool]) -> tuple[bool, ...]:
    """Returns the shortest beginning of a sequence that, repeated, gives all of it."""
    repeats = lambda size: all(x == layers[i % size] for i, x in enumerate(layers))  # noqa: E731
    return tuple(layers[: next(filter(repeats, range(1, len(layers) + 1)))])


def sliding_layers(lm: Architecture) -> list[bool]:
    """Returns whether each layer slides."""
    return [lm.sliding[i % len(lm.sliding)] for i in range(lm.layers)]


def layer_types(lm: Architecture) -> list[str]:
    """Returns `layer_types`, the kind of each layer."""
    kinds = {slides: kind for kind, slides in _SLIDES.items()}
    return [kinds[slides] for slides in sliding_layers(lm)]


def check_heads(lm: Architecture) -> None:
    """Raises ValueError for a width that the heads do not divide."""
    if lm.width % lm.heads:
        raise ValueError(
            f"width={lm.width} is not a multiple of heads={lm.heads}, as transformers "
            "demands: it cannot be exported"
        )


def check_ids(ids: Mapping[str, Any], file: epath.Path) -> dict[str, Any]:
    """Returns ids of special tokens. Raises ValueError, which names the file, for an invalid id."""
    for name, value in ids.items():
        numbers = value if isinstance(value, list) and name.startswith("eos") else [value]
        if value is not None and not all(type(i) is int and 0 <= i < LARGEST for i in numbers):
            raise ValueError(f"{file}: {name}={value!r} is no token id")
    return dict(ids)

"""Checked numbers from a Hugging Face config.json."""

from collections.abc import Mapping
from typing import Any

from etils import epath

LARGEST = 2**63  # bound of numbers in a configuration


def positive(file: epath.Path, content: Mapping[str, Any], key: str, whole: bool = False) -> Any:
    """A number above 0. Raises ValueError for anything else."""
    value, kinds = content[key], (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 < value < LARGEST:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{file}: {key}={value!r} must be a {kind} above 0, and below 2^63")
    return value


def rope_theta(file: epath.Path, content: Mapping[str, Any], default: float) -> float:
    """From `rope_parameters` (transformers 5) or `rope_theta`. Raises ValueError for scaling."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    known = isinstance(rope, dict) and not rope.keys() - {"rope_theta", "rope_type"}
    if not known or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{file}: rotary positions {rope} are not supported: only rope_theta is")
    return positive(file, {"rope_theta": default, **content, **rope}, "rope_theta")


def ids(stated: Mapping[str, Any], file: epath.Path) -> dict[str, Any]:
    """Ids of special tokens as a file states them. Raises ValueError for an invalid id."""
    for name, value in stated.items():
        several = value if isinstance(value, list) and name.startswith("eos") else [value]
        if value is not None and not all(type(i) is int and 0 <= i < LARGEST for i in several):
            raise ValueError(f"{file}: {name}={value!r} is no token id")
    return dict(stated)

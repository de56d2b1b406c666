"""How a model differs from the one that an artifact's config.json states."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from undo_jax.store.artifacts import omitted_defaults, to_json
from undo_jax.types import LM


def differences(lm: LM, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the fields in which a model differs from what a config.json states.

    Args:
        lm: the model, a dataclass. Fields with the metadata `affects_values` False are ignored.
        config: the model as config.json states it.

    Returns:
        Names of fields, with their values in `lm`.
    """
    defaults = omitted_defaults(lm)
    model: Any = lm
    ignored = {f.name for f in fields(model) if not f.metadata.get("affects_values", True)}
    return [
        (name, value)
        for name, value in {**defaults, **to_json(lm)}.items()
        if name not in ignored and config.get(name, defaults.get(name, value)) != value
    ]

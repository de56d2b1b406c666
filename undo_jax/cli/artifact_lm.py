"""The model of an artifact, from its config.json alone."""

import dataclasses
import math
import typing

import jax
from etils import epath
from jax.sharding import Mesh

from undo_jax.models import hf_folder
from undo_jax.models.architecture import Adapters
from undo_jax.models.rope import scaling_of
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.store import artifacts

NESTED = (dict, type(None))
JSON_TYPES = {"sliding": list, "rope_scaling": NESTED, "adapters": NESTED}  # not those of the field


def read_lm(artifact: epath.Path) -> Transformer:
    """Returns the model that a finished artifact's config.json describes.

    Raises FileNotFoundError where there is no finished artifact and ValueError for another model.
    """
    config = artifacts.read_finished_model(artifact)
    kind = config.pop("type")
    fields = {field.name: field for field in dataclasses.fields(Transformer)}
    unknown = sorted(config.keys() - fields.keys())
    if kind != Transformer.__name__ or unknown:
        raise ValueError(
            f"{artifact} holds a {kind} {' '.join(unknown)}: only a Transformer of this version "
            "is read without its experiment"
        )
    hints = typing.get_type_hints(Transformer)
    for name, field in fields.items():
        if name not in config:
            problem = "" if field.default is not dataclasses.MISSING else f"without {name}"
        else:
            is_valid = _is_of_type(config[name], JSON_TYPES.get(name), hints[name])
            problem = "" if is_valid else f"with {name}={config[name]!r}"
        if problem:
            raise ValueError(
                f"{artifact} holds a Transformer {problem}: delete it, and a run makes it again"
            )
    if "rope_scaling" in config:
        config["rope_scaling"] = scaling_of(config["rope_scaling"], artifact)
    if adapters := config.get("adapters"):
        config["adapters"] = Adapters(**{n: v for n, v in adapters.items() if n != "type"})
    return Transformer(**config)


def _is_of_type(value: typing.Any, json_types: typing.Any, hint: typing.Any) -> bool:
    """Whether a value of config.json may be one of a field with this type hint."""
    if json_types:
        return isinstance(value, json_types)
    options = typing.get_args(hint) or (hint,)
    types = [type(option) if isinstance(option, str) else option for option in options]
    return type(value) in types or (type(value) is int and float in types)


def expression(lm: Transformer) -> str:
    """Returns Python for a model: a preset of its family, with the fields that differ."""
    changes = {
        name: [
            f"{field.name}={getattr(lm, field.name)!r}"
            for field in dataclasses.fields(lm)
            if getattr(lm, field.name) != getattr(preset, field.name)
        ]
        for name, preset in hf_folder.family(lm.family).PRESETS.items()
    }
    name = min(changes, key=lambda name: len(changes[name]))
    arguments = ", ".join([f'"{name}"', *changes[name]])
    return f"preset({arguments})"


def mesh_of(lm: Transformer) -> Mesh:
    """Returns a mesh of as many devices as the model's sizes allow, all along `fsdp`."""
    return make_mesh(MeshShape(fsdp=math.gcd(len(jax.devices()), lm.width, lm.vocabulary)))

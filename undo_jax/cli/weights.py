"""`undo-jax import-hf FOLDER OUT` and `undo-jax export-hf ARTIFACT OUT`."""

import dataclasses
import math
import typing
from typing import Literal

import jax
from etils import epath
from jax.sharding import Mesh
from tyro.conf import Positional

from undo_jax import checkpoint
from undo_jax.cli.devices import ALONE, Joined, join
from undo_jax.cli.experiment import described_model
from undo_jax.log import console
from undo_jax.models import hf
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import PRESETS, Gemma2
from undo_jax.sharding import MeshShape, make_mesh


def import_hf(folder: Positional[str], out: Positional[str], processes: Joined = ALONE) -> None:
    """Turn Gemma-2 weights of Hugging Face into a base for experiments.

    Prints the model to put into the experiment's file; `--pretrain.base OUT` then uses it.

    Args:
        folder: config.json and safetensors files, on this machine.
        out: the new checkpoint; may be gs://.
    """
    join(processes)
    config, path = hf.read_config(folder), epath.Path(out)
    if path.exists():
        raise FileExistsError(f"{path} exists: give a new folder")
    checkpoint.write(path, hf.load(folder, config, _mesh(config)))
    if jax.process_index() == 0:
        print(f"model={expression(config)}")
        console.print(f"use it with the flag --pretrain.base {path}", soft_wrap=True)


def export_hf(
    artifact: Positional[str],
    out: Positional[str],
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_gb: float = 5.0,
    tokenizer: str | None = None,
    processes: Joined = ALONE,
) -> None:
    """Write a model of a run as a folder that Hugging Face transformers loads.

    What Hugging Face's configuration cannot state is left out: that attention stays within a
    document (document_start).

    Args:
        artifact: the folder of a finished model, e.g. runs/mine/distill-...; may be gs://.
        out: the new folder, on this machine.
        dtype: float32 is exact; rounding to bfloat16 may undo small updates.
        max_shard_gb: the size of a weights file at most, in GB.
        tokenizer: a .json or .model file to copy along.
    """
    if not 0 < max_shard_gb < math.inf:
        raise ValueError(f"max_shard_gb={max_shard_gb}: give a number of GB above 0")
    join(processes)
    config = model(epath.Path(artifact))
    params = checkpoint.restore(epath.Path(artifact) / "params", Functional(config), _mesh(config))
    hf.save(out, config, params, dtype, max_shard_gb * 1e9, tokenizer)
    console.print(f"written: {out}", soft_wrap=True)


def model(artifact: epath.Path) -> Gemma2:
    """The model that a finished artifact's config.json describes.

    Raises FileNotFoundError where there is no finished artifact and ValueError for another model.
    """
    fields = described_model(artifact)
    kind, known = fields.pop("type"), {field.name for field in dataclasses.fields(Gemma2)}
    unknown = sorted(fields.keys() - known)
    if kind != Gemma2.__name__ or unknown:
        raise ValueError(
            f"{artifact} holds a {kind} {' '.join(unknown)}: only a Gemma2 of this version can be "
            "exported"
        )
    hints = typing.get_type_hints(Gemma2)
    for name, value in fields.items():
        kinds = [type(x) if isinstance(x, str) else x for x in typing.get_args(hints[name])]
        kinds = kinds or [hints[name]]
        if type(value) not in (*kinds, *([int] if float in kinds else [])):
            raise ValueError(
                f"{artifact} holds a Gemma2 with {name}={value!r}: delete it, and a run makes it "
                "again"
            )
    return Gemma2(**fields)


def expression(config: Gemma2) -> str:
    """Python for a model: a preset, or the fields that differ from Gemma2()."""
    for name, known in PRESETS.items():
        if config == known:
            return f'preset("{name}")'
    fields = [f for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    return f"Gemma2({', '.join(f'{f.name}={getattr(config, f.name)!r}' for f in fields)})"


def _mesh(config: Gemma2) -> Mesh:
    """Every device holds as small a part of each matrix as its width allows; a CPU is one."""
    return make_mesh(MeshShape(fsdp=math.gcd(len(jax.devices()), config.width)))

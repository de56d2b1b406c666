"""`undo-jax import-hf FOLDER OUT` and `undo-jax export-hf ARTIFACT OUT`."""

import dataclasses
import math
import typing
from typing import Any, Literal

import jax
from etils import epath
from jax.sharding import Mesh

from undo_jax.cli import card, tokenizer_of_artifact
from undo_jax.cli.devices import ALONE, Joined, join
from undo_jax.cli.flags import ArtifactFolder, Folder, MaybeText, Out, Switch
from undo_jax.logs.log import console
from undo_jax.models import hf, hf_folder
from undo_jax.models.adapters import merged
from undo_jax.models.architecture import Adapters
from undo_jax.models.rope import scaling_of
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.atomic_files import absolute_path, read_json
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.processes import barrier
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.artifacts import Artifact


def import_hf(
    folder: Folder,
    out: Out,
    bos_token: MaybeText = None,
    without_tokenizer: Switch = False,
    processes: Joined = ALONE,
) -> None:
    """Turn Hugging Face weights into a base for experiments.

    The model families are those in section 6 of docs/YOUR_MODEL.md.

    Prints the model to put into the experiment's file; `--pretrain.base OUT` then uses it. OUT is
    an artifact: `generate` and `export-hf` take it, too.

    Args:
        folder: config.json and safetensors files, on this machine; OUT records its tokenizer.
        out: the new artifact; may be gs://.
        bos_token: what opens a document, by default the folder's BOS, else what ends a text.
        without_tokenizer: import the weights alone, of a folder whose tokenizer cannot be used.
    """
    join(processes)
    lm, path = hf_folder.read_config(folder), epath.Path(out)
    if path.exists() and not _abandoned(path):
        raise FileExistsError(f"{path} exists: give a new folder")
    said = {n: v for n, v in artifacts.to_json(lm).items() if n not in hf_folder.UNSTATED}
    asked = epath.Path(folder), lm, bos_token, without_tokenizer
    described, words = tokenizer_of_artifact.imported(*asked)
    about = {"tokenizer": described, "licence": card.licence(epath.Path(folder))}
    base = Artifact(path.parent, "import", "base", 0, {"model": said}, (), about, path.name)
    params = hf.load(folder, lm, mesh_of(lm))
    barrier(f"import {path.name}")  # else a late process would find OUT already begun
    artifacts.prepare_folder(base)
    artifacts.save_artifact(base, params, {})
    if jax.process_index() == 0:
        lm = dataclasses.replace(lm, used=words if words < lm.vocabulary else None)
        print(f"model={expression(lm)}")
        names = {lm.family: "preset"}
        if f"{type(lm.rope_scaling).__name__}(" in expression(lm):
            names["rope"] = type(lm.rope_scaling).__name__
        for module, name in names.items():
            console.print(f"from undo_jax.models.{module} import {name}", soft_wrap=True)
        if not without_tokenizer and "type" not in described:
            console.print(f"without a tokenizer: {folder} has none", soft_wrap=True)
        console.print(f"use it with the flag --pretrain.base {path}", soft_wrap=True)


def export_hf(
    artifact: ArtifactFolder,
    out: Out,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_gb: float = 5.0,
    tokenizer: MaybeText = None,
    bos_token: MaybeText = None,
    processes: Joined = ALONE,
) -> None:
    """Write a model of a run as a folder that Hugging Face transformers loads.

    The run's tokenizer is written, too, so that transformers' AutoTokenizer gives the ids of
    training, BOS first, with the chat template and generation_config.json of the tokenizer's
    folder; and a card, README.md: how it was made, its scores, and the licence of its base where
    that is known. Hugging Face's configuration cannot state that attention stays within
    a document (document_start): that is left out.

    Args:
        artifact: the folder of a finished model, e.g. runs/mine/distill-...; may be gs://.
        out: the new folder, on this machine.
        dtype: float32 is exact; rounding to bfloat16 may undo small updates.
        max_shard_gb: the largest size of a weights file, in GB.
        tokenizer: the run's tokenizer, where its file is no longer where the run found it.
        bos_token: what begins a document, of a Hugging Face tokenizer, by default the run's.
    """
    if not 0 < max_shard_gb < math.inf:
        raise ValueError(f"max_shard_gb={max_shard_gb}: give a number of GB above 0")
    join(processes)
    folder = epath.Path(artifact)
    lm = model(folder)
    if absolute_path(folder) in absolute_path(epath.Path(out)).parents:
        raise ValueError(f"{out} is inside the artifact {folder}: give a folder outside")
    params = param_checkpoint.restore(folder / "params", lm, mesh_of(lm))
    lm, params = merged(lm, params)  # there is no place for adapters in a folder of this kind
    ids, files, note = tokenizer_of_artifact.exported(folder, lm, tokenizer, bos_token)
    files = {**files, card.FILE: card.card(folder, note).encode()}
    hf.save(out, lm, params, dtype, max_shard_gb * 1e9, ids, files)
    console.print(f"written: {out}", soft_wrap=True)


def model(artifact: epath.Path) -> Transformer:
    """The model that a finished artifact's config.json describes.

    Raises FileNotFoundError where there is no finished artifact and ValueError for another model.
    """
    fields = artifacts.read_finished_model(artifact)
    kind, known = fields.pop("type"), {field.name for field in dataclasses.fields(Transformer)}
    unknown = sorted(fields.keys() - known)
    if kind != Transformer.__name__ or unknown:
        raise ValueError(
            f"{artifact} holds a {kind} {' '.join(unknown)}: only a Transformer of this version "
            "is read without its experiment"
        )
    for field in dataclasses.fields(Transformer):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise ValueError(
                f"{artifact} holds a Transformer without {field.name}: delete it, and a run makes "
                "it again"
            )
    hints = typing.get_type_hints(Transformer)
    for name, value in fields.items():
        kinds = [type(x) if isinstance(x, str) else x for x in typing.get_args(hints[name])]
        kinds = kinds or [hints[name]]
        nested = (dict, type(None))
        several = {"sliding": list, "rope_scaling": nested, "adapters": nested}.get(name)
        known = type(value) in (*kinds, *([int] if float in kinds else []))
        if not (isinstance(value, several) if several else known):
            raise ValueError(
                f"{artifact} holds a Transformer with {name}={value!r}: delete it, and a run makes "
                "it again"
            )
    if "rope_scaling" in fields:
        fields["rope_scaling"] = scaling_of(fields["rope_scaling"], artifact)
    if made := fields.get("adapters"):
        fields["adapters"] = Adapters(**{name: v for name, v in made.items() if name != "type"})
    return Transformer(**fields)


def expression(lm: Transformer) -> str:
    """Python for a model: a preset of its family, with the fields that differ."""

    def differing(preset: Transformer) -> dict[str, Any]:
        own = {field.name: getattr(lm, field.name) for field in dataclasses.fields(lm)}
        return {name: value for name, value in own.items() if value != getattr(preset, name)}

    made = {name: differing(of) for name, of in hf_folder.family(lm.family).PRESETS.items()}
    name = min(made, key=lambda name: len(made[name]))
    changes = "".join(f", {field}={value!r}" for field, value in made[name].items())
    return f'preset("{name}"{changes})'


def _abandoned(path: epath.Path) -> bool:
    """Whether a folder is empty, or was left by an import that was killed."""
    names = {file.name for file in path.iterdir()} if path.is_dir() else {"."}
    if "summary.json" in names or "config.json" not in names:
        return not names
    return read_json(path / "config.json").get("stage") == "import"


def mesh_of(lm: Transformer) -> Mesh:
    """Shard over as many devices as the model's sizes allow, all along `fsdp`."""
    return make_mesh(MeshShape(fsdp=math.gcd(len(jax.devices()), lm.width, lm.vocabulary)))

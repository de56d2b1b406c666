"""`undo-jax import-hf FOLDER OUT` and `undo-jax export-hf ARTIFACT OUT`."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

import jax
from etils import epath
from jax.sharding import Mesh

from undo_jax import artifacts, checkpoint
from undo_jax.artifacts import Artifact
from undo_jax.cli import card
from undo_jax.cli.devices import ALONE, Joined, join
from undo_jax.cli.flags import ArtifactFolder, Folder, Out
from undo_jax.data import tokenizer_files
from undo_jax.data.tokenizers import Tokenizer, load_tokenizer
from undo_jax.durable import absolute, read_json
from undo_jax.log import console
from undo_jax.mesh import MeshShape, make_mesh
from undo_jax.models import hf, hf_folder, stated
from undo_jax.models.adapters import merged
from undo_jax.models.architecture import Adapters
from undo_jax.models.rope import scaling_of
from undo_jax.models.transformer import Transformer


def import_hf(folder: Folder, out: Out, processes: Joined = ALONE) -> None:
    """Turn Hugging Face weights into a base for experiments.

    Of Llama, Qwen2.5, Qwen3, Mistral, Gemma-2, Gemma-3 and Phi-3.

    Prints the model to put into the experiment's file; `--pretrain.base OUT` then uses it. OUT is
    an artifact: `generate` and `export-hf` take it, too.

    Args:
        folder: config.json and safetensors files, on this machine; OUT records its tokenizer.
        out: the new artifact; may be gs://.
    """
    join(processes)
    lm, path = hf_folder.read_config(folder), epath.Path(out)
    if path.exists() and not _abandoned(path):
        raise FileExistsError(f"{path} exists: give a new folder")
    said = {n: v for n, v in artifacts.plain(lm).items() if n not in hf_folder.UNSTATED}
    described, words = _described(epath.Path(folder), lm)
    about = {"tokenizer": described, "licence": card.licence(epath.Path(folder))}
    base = Artifact(path.parent, "import", "base", 0, {"model": said}, (), about, path.name)
    params = hf.load(folder, lm, mesh_of(lm))
    artifacts.wait(f"import {path.name}")  # else a late process would find OUT already begun
    artifacts.begin(base)
    artifacts.keep(base, params, {})
    if jax.process_index() == 0:
        lm = dataclasses.replace(lm, used=words if words < lm.vocabulary else None)
        print(f"model={expression(lm)}")
        names = {lm.family: "preset"}
        if f"{type(lm.rope_scaling).__name__}(" in expression(lm):
            names["rope"] = type(lm.rope_scaling).__name__
        for module, name in names.items():
            console.print(f"from undo_jax.models.{module} import {name}", soft_wrap=True)
        console.print(f"use it with the flag --pretrain.base {path}", soft_wrap=True)


def export_hf(
    artifact: ArtifactFolder,
    out: Out,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_gb: float = 5.0,
    tokenizer: str | None = None,
    bos_token: str | None = None,
    processes: Joined = ALONE,
) -> None:
    """Write a model of a run as a folder that Hugging Face transformers loads.

    The run's tokenizer is written, too, so that transformers' AutoTokenizer gives the ids of
    training, BOS first, and a card, README.md: how it was made, its scores, and the licence of its
    base where that is known. Hugging Face's configuration cannot state that attention stays within
    a document (document_start): that is left out.

    Args:
        artifact: the folder of a finished model, e.g. runs/mine/distill-...; may be gs://.
        out: the new folder, on this machine.
        dtype: float32 is exact; rounding to bfloat16 may undo small updates.
        max_shard_gb: the largest size of a weights file, in GB.
        tokenizer: the run's tokenizer, where its file is no longer where the run found it.
        bos_token: what begins a document, of a Hugging Face tokenizer; default: as in the run.
    """
    if not 0 < max_shard_gb < math.inf:
        raise ValueError(f"max_shard_gb={max_shard_gb}: give a number of GB above 0")
    join(processes)
    folder = epath.Path(artifact)
    lm = model(folder)
    if absolute(folder) in absolute(epath.Path(out)).parents:
        raise ValueError(f"{out} is inside the artifact {folder}: give a folder outside")
    params = checkpoint.restore(folder / "params", lm, mesh_of(lm))
    lm, params = merged(lm, params)  # there is no place for adapters in a folder of this kind
    ids, files = _tokens(folder, lm, tokenizer, bos_token)
    files = {**files, card.FILE: card.card(folder).encode()}
    hf.save(out, lm, params, dtype, max_shard_gb * 1e9, ids, files)
    console.print(f"written: {out}", soft_wrap=True)


def model(artifact: epath.Path) -> Transformer:
    """The model that a finished artifact's config.json describes.

    Raises FileNotFoundError where there is no finished artifact and ValueError for another model.
    """
    fields = artifacts.described_model(artifact)
    kind, known = fields.pop("type"), {field.name for field in dataclasses.fields(Transformer)}
    unknown = sorted(fields.keys() - known)
    if kind != Transformer.__name__ or unknown:
        raise ValueError(
            f"{artifact} holds a {kind} {' '.join(unknown)}: only a Transformer of this version "
            "can be exported"
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


def tokenizer_of(
    folder: epath.Path, lm: Transformer, given: str | None = None, bos_token: str | None = None
) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of an artifact's model, and the tokens that end a document.

    `given` is the file, where it is not where config.json says. Raises ValueError for a tokenizer
    of another model and where there is none, and what the tokenizer raises for its file.
    """
    said, own = _said(folder)
    try:
        tokenizer = _tokenizer(folder, lm, said, given, bos_token)
    except (ValueError, OSError, ImportError) as error:
        if given is not None or bos_token is not None:
            raise
        raise ValueError(f"without a tokenizer: {error}; --tokenizer FILE gives one") from error
    ends = (own or tokenizer_files.ids(tokenizer)).get("eos_token_id", tokenizer.bos_id)
    return tokenizer, ends if isinstance(ends, list) else [ends]


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


def _described(folder: epath.Path, lm: Transformer) -> tuple[dict[str, Any], int]:
    """What config.json will say of the tokenizer of a Hugging Face folder: at least its ids.

    And how many of the model's ids it makes: all where it is not known.
    """
    ids = hf_folder.read_ids(folder)
    found = [folder / f"tokenizer.{kind}" for kind in ("json", "model")]
    for file in [file for file in found if file.is_file()][:1]:
        try:
            bos = hf_folder.read_bos(folder) if file.suffix == ".json" else None
            tokenizer = load_tokenizer(file, bos)
            if tokenizer.bos_id != ids["bos_token_id"]:
                raise ValueError(f"{file} has another BOS than {folder / hf_folder.CONFIG}")
            if tokenizer.vocab_size > lm.vocabulary:
                raise ValueError(
                    f"{file} makes {tokenizer.vocab_size} ids, the model's tables have "
                    f"{lm.vocabulary} rows"
                )
            return {**tokenizer_files.describe(tokenizer), "ids": ids}, tokenizer.vocab_size
        except (ValueError, ImportError) as error:
            console.print(f"without its tokenizer: {error}", soft_wrap=True)
    return {"ids": ids}, lm.vocabulary


def _tokens(
    folder: epath.Path, lm: Transformer, given: str | None, bos_token: str | None
) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """Ids of an artifact's special tokens, and its tokenizer's files; prints why if there are none.

    Raises what `_tokenizer` does for a tokenizer that is given.
    """
    said, own = _said(folder)
    try:
        tokenizer = _tokenizer(folder, lm, said, given, bos_token)
        return own or tokenizer_files.ids(tokenizer), tokenizer_files.files(tokenizer)
    except (ValueError, OSError, ImportError) as error:
        if given is not None or bos_token is not None:
            raise
        console.print(f"without a tokenizer: {error}; --tokenizer FILE gives one", soft_wrap=True)
        return own, {}


def _said(folder: epath.Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What config.json says of the tokenizer, and the ids of special tokens in it, if any."""
    file = folder / "config.json"
    said = read_json(file).get("tokenizer") or {}
    own = said.get("ids", {}) if isinstance(said, dict) else None
    if not isinstance(own, dict):
        raise ValueError(
            f"{file} describes no tokenizer: delete {folder}, and a run makes it again"
        )
    return said, stated.ids({name: own[name] for name in hf.IDS if name in own}, file)


def _tokenizer(
    folder: epath.Path,
    lm: Transformer,
    said: Mapping[str, Any],
    given: str | None,
    bos_token: str | None,
) -> Tokenizer:
    """The tokenizer given, or what config.json says of one.

    Raises ValueError where there is none, where it is not the one that config.json describes, and
    where the model lacks its ids; and what the tokenizer raises for its file.
    """
    if given is not None:
        own = said.get("bos_token") if given.endswith(".json") else None
        tokenizer = load_tokenizer(given, bos_token or own)
    elif bos_token is not None:
        raise ValueError(f"bos_token={bos_token} of which file? give --tokenizer FILE")
    elif "type" not in said:
        raise ValueError(f"{folder / 'config.json'} names none")
    else:
        tokenizer = tokenizer_files.described(said)
    name = given or said.get("path") or said["type"]
    if tokenizer.fingerprint != said.get("fingerprint", tokenizer.fingerprint):
        trained = said.get("path") or said["type"]
        raise ValueError(f"{name} is not what {folder} was trained with, which is {trained}")
    opens = said.get("ids", {}).get("bos_token_id", tokenizer.bos_id)
    if tokenizer.bos_id != opens:
        raise ValueError(f"{name} opens a document with {tokenizer.bos_id}, {folder} with {opens}")
    if tokenizer.vocab_size > lm.vocabulary:
        raise ValueError(
            f"{name} makes {tokenizer.vocab_size} ids, the model of {folder} knows "
            f"{lm.vocabulary}: it is another model's tokenizer"
        )
    return tokenizer


def mesh_of(lm: Transformer) -> Mesh:
    """Shard over as many devices as the model's sizes allow, all along `fsdp`."""
    return make_mesh(MeshShape(fsdp=math.gcd(len(jax.devices()), lm.width, lm.vocabulary)))

"""`undo-jax import-hf FOLDER OUT`."""

import dataclasses

import jax
from etils import epath

from undo_jax.cli import artifact_lm, artifact_tokenizer, card, devices
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.flags import Folder, MaybeText, Out, Switch
from undo_jax.logs.log import console
from undo_jax.models import hf, hf_folder
from undo_jax.runtime.atomic_files import read_json
from undo_jax.runtime.processes import barrier
from undo_jax.store import artifacts
from undo_jax.store.artifacts import Artifact

ORDER = 170


def import_hf(
    folder: Folder,
    out: Out,
    bos_token: MaybeText = None,
    without_tokenizer: Switch = False,
    processes: Joined = ALONE,
) -> None:
    """Turn Hugging Face weights into a base for experiments.

    Of Llama, Qwen2.5, Qwen3, Mistral, Gemma-2, Gemma-3 and Phi-3.

    Prints the model to put into the experiment's file; `--pretrain.base OUT` then uses it. OUT is
    an artifact: `generate` and `export-hf` take it, too.

    Args:
        folder: config.json and safetensors files, on this machine; OUT records its tokenizer.
        out: the new artifact; may be gs://.
        bos_token: what opens a document, by default the folder's BOS, else what ends a text.
        without_tokenizer: import the weights alone, of a folder whose tokenizer cannot be used.
    """
    devices.join(processes)
    source, target = epath.Path(folder), epath.Path(out)
    lm = hf_folder.read_config(folder)
    if target.exists() and not _is_abandoned(target):
        raise FileExistsError(f"{target} exists: give a new folder")
    tokenizer, used_ids = artifact_tokenizer.describe_imported(
        source, lm, bos_token, without_tokenizer
    )
    fields = artifacts.to_json(lm)
    config = {name: value for name, value in fields.items() if name not in hf_folder.UNSTATED}
    about = {"tokenizer": tokenizer, "licence": card.read_licence(source)}
    base = Artifact(target.parent, "import", "base", 0, {"model": config}, (), about, target.name)
    params = hf.load(folder, lm, artifact_lm.mesh_of(lm))
    # without it, a late process would find OUT already begun
    barrier(f"import {target.name}")
    artifacts.prepare_folder(base)
    artifacts.save_artifact(base, params, {})
    if jax.process_index() != 0:
        return
    lm = dataclasses.replace(lm, used=used_ids if used_ids < lm.vocabulary else None)
    expression = artifact_lm.expression(lm)
    print(f"model={expression}")
    names = {lm.family: "preset"}
    if f"{type(lm.rope_scaling).__name__}(" in expression:
        names["rope"] = type(lm.rope_scaling).__name__
    for module, name in names.items():
        console.print(f"from undo_jax.models.{module} import {name}", soft_wrap=True)
    if not without_tokenizer and "type" not in tokenizer:
        console.print(f"without a tokenizer: {folder} has none", soft_wrap=True)
    console.print(f"use it with the flag --pretrain.base {target}", soft_wrap=True)


def _is_abandoned(folder: epath.Path) -> bool:
    """Whether a folder is empty, or was left by an import that was killed."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else {"."}
    if "summary.json" in names or "config.json" not in names:
        return not names
    return read_json(folder / "config.json").get("stage") == "import"

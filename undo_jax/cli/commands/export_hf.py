"""`undo-jax export-hf ARTIFACT OUT`."""

import math
from typing import Literal

from etils import epath

from undo_jax.cli import artifact_lm, artifact_tokenizer, card, devices
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.flags import ArtifactFolder, MaybeText, Out
from undo_jax.logs.log import console
from undo_jax.models import hf
from undo_jax.models.adapters import merged
from undo_jax.runtime.atomic_files import absolute_path
from undo_jax.store import param_checkpoint

ORDER = 180


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
    devices.join(processes)
    folder = epath.Path(artifact)
    lm = artifact_lm.read_lm(folder)
    if absolute_path(folder) in absolute_path(epath.Path(out)).parents:
        raise ValueError(f"{out} is inside the artifact {folder}: give a folder outside")
    params = param_checkpoint.restore(folder / "params", lm, artifact_lm.mesh_of(lm))
    lm, params = merged(lm, params)  # this kind of folder has no place for adapters
    exported = artifact_tokenizer.export(folder, lm, tokenizer, bos_token)
    files = {**exported.files, card.FILE: card.card(folder, exported.note).encode()}
    hf.save(out, lm, params, dtype, max_shard_gb * 1e9, exported.ids, files)
    console.print(f"written: {out}", soft_wrap=True)

"""Parameters that an artifact keeps at chosen steps, beside its last ones: ARTIFACT/steps/N/."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from undo_jax.runtime.atomic_files import fsync_tree, read_json, write_json
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.artifacts import Artifact
from undo_jax.types import Params


def snapshot_folder(artifact: Artifact, step: int) -> epath.Path:
    """The folder of an artifact's parameters after `step` steps."""
    return artifact.folder / artifacts.STEPS / str(step)


def read_summary(artifact: Artifact, step: int) -> dict[str, Any] | None:
    """The summary of the parameters kept at a step; None if there is none, or it is damaged."""
    path = snapshot_folder(artifact, step) / "summary.json"
    try:
        found = read_json(path) if path.exists() else None
    except ValueError:
        return None
    return found if found and found.get("fingerprint") == artifact.fingerprint else None


def save_snapshot(
    artifact: Artifact, step: int, params: Params, scores: Mapping[str, float], **more: Any
) -> None:
    """Keep the parameters after `step` steps, replacing earlier ones, in an artifact's layout.

    The summary is written last.
    """
    folder = snapshot_folder(artifact, step)
    if jax.process_index() == 0:
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
    artifacts.barrier(f"keep {folder.name} of {artifact.folder.name}")
    param_checkpoint.save(folder / "params", params)
    param_checkpoint.wait_until_saved()
    if jax.process_index() == 0:
        artifacts.write_description(artifact, folder)
        fsync_tree(folder)
        said = {"steps": step, "eval": scores, **more, "fingerprint": artifact.fingerprint}
        write_json(folder / "summary.json", said)
    artifacts.barrier(f"kept {folder.name} of {artifact.folder.name}")

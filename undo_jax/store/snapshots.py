"""Parameters that an artifact keeps at chosen steps, beside its last ones: ARTIFACT/steps/N/."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from undo_jax.runtime.atomic_files import fsync_tree, read_json, write_json
from undo_jax.runtime.processes import barrier
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.artifacts import Artifact
from undo_jax.types import Params


def snapshot_folder(artifact: Artifact, step: int) -> epath.Path:
    """Returns the folder of an artifact's parameters after `step` steps."""
    return artifact.folder / artifacts.STEPS / str(step)


def read_summary(artifact: Artifact, step: int) -> dict[str, Any] | None:
    """Reads the summary of a snapshot. Returns None if there is none, or if it is damaged."""
    path = snapshot_folder(artifact, step) / "summary.json"
    try:
        summary = read_json(path) if path.exists() else None
    except ValueError:
        return None
    return summary if summary and summary.get("fingerprint") == artifact.fingerprint else None


def save_snapshot(
    artifact: Artifact, step: int, params: Params, scores: Mapping[str, float], **costs: Any
) -> None:
    """Saves the parameters after `step` steps in an artifact's layout, replacing earlier ones.

    The summary is written last. It has the scores, and `costs` by their names.
    """
    folder = snapshot_folder(artifact, step)
    if jax.process_index() == 0:
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
    barrier(f"begin snapshot {folder.name} of {artifact.folder.name}")
    param_checkpoint.save(folder / "params", params)
    param_checkpoint.wait_until_saved()
    if jax.process_index() == 0:
        artifacts.write_description(artifact, folder)
        fsync_tree(folder)
        summary = {"steps": step, "eval": scores, **costs, "fingerprint": artifact.fingerprint}
        write_json(folder / "summary.json", summary)
    barrier(f"finish snapshot {folder.name} of {artifact.folder.name}")

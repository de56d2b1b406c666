"""Folders for the progress of artifacts that train together, until all of them are finished.

WORKDIR/progress-STAGE-FINGERPRINT/
    artifacts.json  their folders, and a name for this training
    */              checkpoints of their training
"""

import hashlib
import json
import secrets
from collections.abc import Sequence

import jax
from etils import epath

from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.runtime.processes import barrier
from undo_jax.store.artifacts import Artifact


def make_progress_folder(artifacts: Sequence[Artifact]) -> epath.Path:
    """Returns the folder for the progress of artifacts that train together; makes it if needed."""
    text = json.dumps([artifact.fingerprint for artifact in artifacts])
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = artifacts[0].workdir / f"progress-{artifacts[0].stage}-{fingerprint}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        names = [artifact.folder.name for artifact in artifacts]
        training = read_training_name(folder) or secrets.token_hex(4)
        write_json(folder / "artifacts.json", {"artifacts": names, "training": training})
    barrier(f"progress {folder.name}")
    return folder


def read_training_name(folder: epath.Path) -> str:
    """Returns the unique name of the training with this progress, "" before it begins."""
    path = folder / "artifacts.json"
    return read_json(path).get("training", "") if path.exists() else ""


def list_interrupted(workdir: epath.Path) -> list[list[str]]:
    """Returns the folders of artifacts whose training was interrupted, a list for each group."""
    return [read_artifact_names(folder) for folder in sorted(workdir.glob("progress-*"))]


def remove_finished_progress(workdir: epath.Path) -> None:
    """Removes the progress of artifacts that are all finished."""
    if jax.process_index() == 0:
        for folder in workdir.glob("progress-*"):
            names = read_artifact_names(folder)
            if all((workdir / name / "summary.json").exists() for name in names):
                folder.rmtree()


def remove_progress(folder: epath.Path) -> None:
    """Removes one progress folder, of artifacts that are finished."""
    if jax.process_index() == 0:
        folder.rmtree()


def read_artifact_names(progress: epath.Path) -> list[str]:
    """Returns the artifacts that a progress folder belongs to, in the order in which they train.

    Raises ValueError if artifacts.json is not as a run writes it.
    """
    path = progress / "artifacts.json"
    names = read_json(path).get("artifacts") if path.exists() else []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{path} lists no artifacts: delete {progress}, and a run trains them again"
        )
    return names

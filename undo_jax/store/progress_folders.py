"""Progress on disk of artifacts that train together.

WORKDIR/progress-STAGE-FINGERPRINT/   for artifacts that train together, until all are finished
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
from undo_jax.store.artifacts import Artifact, barrier


def make_progress_folder(artifacts: Sequence[Artifact]) -> epath.Path:
    """The folder for the progress of artifacts made together; created if there is none."""
    names = [artifact.folder.name for artifact in artifacts]
    text = json.dumps([artifact.fingerprint for artifact in artifacts])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = artifacts[0].workdir / f"progress-{artifacts[0].stage}-{digest}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        listed = {
            "artifacts": names,
            "training": read_training_name(folder) or secrets.token_hex(4),
        }
        write_json(folder / "artifacts.json", listed)
    barrier(f"progress {folder.name}")
    return folder


def read_training_name(folder: epath.Path) -> str:
    """A name for the training that has this progress, and for no other; none before it begins."""
    described = folder / "artifacts.json"
    return read_json(described).get("training", "") if described.exists() else ""


def list_interrupted(workdir: epath.Path) -> list[list[str]]:
    """The folders of artifacts whose training was interrupted: a list for each company."""
    return [read_artifact_names(folder) for folder in sorted(workdir.glob("progress-*"))]


def remove_finished_progress(workdir: epath.Path) -> None:
    """Remove the progress of artifacts that are all finished."""
    if jax.process_index() == 0:
        for folder in workdir.glob("progress-*"):
            if all(
                (workdir / name / "summary.json").exists() for name in read_artifact_names(folder)
            ):
                folder.rmtree()


def remove_progress(folder: epath.Path) -> None:
    """Remove the progress of artifacts that are finished."""
    if jax.process_index() == 0:
        folder.rmtree()


def read_artifact_names(progress: epath.Path) -> list[str]:
    """The artifacts that a progress folder belongs to, in the order in which they train.

    Raises ValueError where it does not say.
    """
    described = progress / "artifacts.json"
    names = read_json(described).get("artifacts") if described.exists() else []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{described} lists no artifacts: delete {progress}, and a run trains them again"
        )
    return names

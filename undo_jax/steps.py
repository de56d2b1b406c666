"""Parameters that an artifact keeps of chosen steps, beside those at its end: ARTIFACT/steps/N/."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from undo_jax import artifacts, checkpoint
from undo_jax.artifacts import Artifact
from undo_jax.durable import flush_all, read_json, write_json
from undo_jax.types import Params


def folder_of(artifact: Artifact, step: int) -> epath.Path:
    """Where an artifact's parameters after so many steps are kept."""
    return artifact.folder / artifacts.STEPS / str(step)


def summary(artifact: Artifact, step: int) -> dict[str, Any] | None:
    """What is said of the parameters kept at a step; None where there are none, or damaged."""
    path = folder_of(artifact, step) / "summary.json"
    try:
        found = read_json(path) if path.exists() else None
    except ValueError:
        return None
    return found if found and found.get("fingerprint") == artifact.fingerprint else None


def keep(
    artifact: Artifact, step: int, params: Params, scores: Mapping[str, float], **more: Any
) -> None:
    """Keep the parameters after so many steps, in place of others; its folder is as an artifact's.

    The summary is written last.
    """
    folder = folder_of(artifact, step)
    if jax.process_index() == 0:
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
    artifacts.wait(f"keep {folder.name} of {artifact.folder.name}")
    checkpoint.save(folder / "params", params)
    checkpoint.wait_until_saved()
    if jax.process_index() == 0:
        artifacts.write_description(artifact, folder)
        flush_all(folder)
        said = {"steps": step, "eval": scores, **more, "fingerprint": artifact.fingerprint}
        write_json(folder / "summary.json", said)
    artifacts.wait(f"kept {folder.name} of {artifact.folder.name}")

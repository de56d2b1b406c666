"""scores.json of a finished artifact: numbers of score plug-ins, which can be added at any time.

It is no part of summary.json, and has a hash of its own::

    {"fingerprint": ..., "scores": {NAME: {"config": ..., "values": {name: number}}}, "sha256": ...}
"""

from collections.abc import Mapping
from typing import Any

from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.store.artifacts import Artifact

SCORES = "scores.json"


def read_scores(artifact: Artifact) -> dict[str, Any]:
    """Returns the entries of an artifact's scores.json, by the scores' names; empty without one.

    Raises ValueError for a file that is damaged.
    """
    path = artifact.folder / SCORES
    remedy = f"delete it, and `undo-jax score {artifact.workdir} NAME` computes it again"
    try:
        content = read_json(path, remedy)
    except FileNotFoundError:
        return {}
    entries = content.get("scores")
    if (
        content.get("fingerprint") != artifact.fingerprint
        or not isinstance(entries, dict)
        or not all(isinstance(entry, dict) for entry in entries.values())
    ):
        raise ValueError(f"{path} is not of artifact {artifact.fingerprint}, or damaged: {remedy}")
    return entries


def write_scores(artifact: Artifact, entries: Mapping[str, Any]) -> None:
    """Writes scores.json, atomically."""
    content = {"fingerprint": artifact.fingerprint, "scores": entries}
    write_json(artifact.folder / SCORES, content)

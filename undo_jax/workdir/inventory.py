"""What is in a workdir: artifacts, and the experiments that list them; read from files alone."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from undo_jax.runtime.atomic_files import is_remote, read_json
from undo_jax.workdir.manifest import artifact_folders, is_manifest

NAMED = re.compile(r"(.+)-([0-9a-f]{8})")  # folders of ours end in a fingerprint
# what a run writes into an artifact's folder
OWN = ("config.json", "metrics.jsonl", "summary.json", "scores.json", "params", "steps")
AGAIN = "run the experiment again, which writes it anew and trains nothing"


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact in a workdir, or what belongs to several: saves of a training, states."""

    folder: epath.Path
    stage: str
    finished: bool
    bytes: int
    changed: float  # seconds since 1970
    parents: frozenset[str] = frozenset()  # fingerprints of what it was made from
    strange: tuple[str, ...] = ()  # what is in its folder and not ours

    @property
    def fingerprint(self) -> str:
        return self.folder.name.rpartition("-")[2]


@dataclass(frozen=True)
class StoredExperiment:
    """An experiment of a workdir, as its file lists it."""

    name: str
    path: epath.Path
    content: dict[str, Any] = field(default_factory=dict)  # none, where the file is damaged
    owners: dict[str, str] = field(default_factory=dict)  # folder -> name of its model
    artifacts: dict[str, StoredArtifact] = field(
        default_factory=dict
    )  # those of its folders that exist
    wrong: str = ""  # why the file cannot be read

    @property
    def missing(self) -> list[str]:
        """What it lists and is not finished."""
        stored = self.artifacts
        return [f for f in self.owners if f not in stored or not stored[f].finished]


def scan_artifacts(workdir: epath.PathLike) -> dict[str, StoredArtifact]:
    """Every artifact by the name of its folder. Links, and what a run has not made, are left out.

    Raises FileNotFoundError where there is no workdir.
    """
    root = epath.Path(workdir)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no workdir {workdir}: give the folder of a run")
    stored = (_artifact(folder) for folder in sorted(root.iterdir()) if not is_link(folder))
    return {artifact.folder.name: artifact for artifact in stored if artifact is not None}


def scan_experiments(
    workdir: epath.PathLike, stored: dict[str, StoredArtifact] | None = None
) -> list[StoredExperiment]:
    """Its experiments, of `known` artifacts or else of all. Raises what `artifacts` does."""
    scanned = scan_artifacts(workdir) if stored is None else stored
    paths = sorted(epath.Path(workdir).glob("experiment-*.json"))
    return [read_experiment(path, scanned) for path in paths]


def read_experiment(path: epath.Path, stored: dict[str, StoredArtifact]) -> StoredExperiment:
    """An experiment from its file, with those of the artifacts that it lists."""
    name = path.name.removeprefix("experiment-").removesuffix(".json")
    try:
        content = read_json(path, AGAIN)
        if not is_manifest(content):
            raise ValueError(f"{path} is not as a run writes it: {AGAIN}")
    except ValueError as error:
        return StoredExperiment(name, path, wrong=str(error))
    owners = {entry["artifact"]: entry["model"] for entry in content["artifacts"]}
    for entry in content["models"]:
        owners |= {folder: entry["model"] for folder in artifact_folders([entry]) - owners.keys()}
    listed = {folder: stored[folder] for folder in owners if folder in stored}
    return StoredExperiment(name, path, content, owners, listed)


def _artifact(folder: epath.Path) -> StoredArtifact | None:
    """The artifact in a folder, if one of ours is there."""
    match = NAMED.fullmatch(folder.name)
    if match is None or not folder.is_dir():
        return None
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    stage, upstream = config.get("stage"), config.get("upstream")
    if config.get("fingerprint") != match[2] or not isinstance(stage, str):
        return None
    if not folder.name.startswith(f"{stage}-"):
        return None
    parents = frozenset(map(str, upstream)) if isinstance(upstream, list) else frozenset()
    strange = tuple(p.name for p in folder.iterdir() if not _is_own(p.name))
    finished, (size, changed) = (folder / "summary.json").exists(), disk_usage(folder)
    return StoredArtifact(folder, stage, finished, size, changed, parents, strange)


def _is_own(name: str) -> bool:
    """Whether a run writes a file of this name into an artifact's folder, or Orbax for it."""
    return name.removesuffix(".tmp") in OWN or ".orbax-checkpoint-tmp" in name


def is_link(path: epath.Path) -> bool:
    return not is_remote(path) and os.path.islink(path)


def disk_usage(folder: epath.Path) -> tuple[int, float]:
    """Bytes of all files in a folder, and when the last of them was written."""
    sizes, times = [0], [0.0]
    for size, time in _files(folder):
        sizes.append(size)
        times.append(time)
    return sum(sizes), max(times)


def _files(folder: epath.Path) -> Iterator[tuple[int, float]]:
    if is_remote(folder):
        for path in folder.rglob("*"):
            if not path.is_dir():
                status = path.stat()
                yield status.length, float(status.mtime)
        return
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = Path(place, name).lstat()
            except FileNotFoundError:  # a run has just replaced it
                continue
            yield status.st_size, status.st_mtime

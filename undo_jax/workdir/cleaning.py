"""Removes from a workdir what experiments do not reach; a kill at any time leaves one that works.

First the experiments' files stop listing what will go; then each artifact loses its summary, so
that it counts as unfinished, and then the rest. Nothing is touched that a run has not written.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.store.progress_folders import read_artifact_names
from undo_jax.workdir.inventory import (
    NAMED,
    StoredArtifact,
    disk_usage,
    is_link,
    scan_artifacts,
    scan_experiments,
)
from undo_jax.workdir.manifest import artifact_folders

# config.json goes last, see `apply_cleaning`
ORDER = ("summary.json", "scores.json", "params", "steps", "metrics.jsonl")
REMAINS = ".removed"  # of a folder's name, when only config.json is left in it
PARAMETERS = ("params",)


@dataclass(frozen=True)
class Removal:
    """What goes: a whole folder of ours, or parts of an artifact's."""

    folder: epath.Path
    label: str  # kind of artifact, or what it is
    bytes: int
    parts: tuple[str, ...] = ()  # of an artifact; all of a folder without any


@dataclass(frozen=True)
class Cleaning:
    """What would be removed, and what stays though nothing reaches it."""

    removals: tuple[Removal, ...]
    listings: Mapping[epath.Path, dict[str, Any] | None]  # new contents; None: the file goes
    stays: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(removal.bytes for removal in self.removals)


def plan_cleaning(workdir: epath.Path, reached: Collection[str]) -> Cleaning:
    """Everything goes but the artifacts with these names of folders, and their ancestors."""
    stored = scan_artifacts(workdir)
    retained = _with_ancestors(stored, reached)
    removed = {name: artifact for name, artifact in stored.items() if name not in retained}
    removals, stays, listings = [], [], {}
    for name, artifact in removed.items():
        strange = [artifact.folder / file for file in artifact.strange]
        size = artifact.bytes - sum(disk_usage(path)[0] for path in strange)
        removals.append(Removal(artifact.folder, artifact.stage, size, ORDER))
        stays += [f"{name}/{path.name}" for path in strange]
    damaged = []
    for experiment in scan_experiments(workdir, stored):
        if experiment.wrong:
            damaged.append(f"{experiment.path.name} ({experiment.wrong})")
            continue
        content = _without_models(experiment.content, removed)
        if content != experiment.content:
            listings[experiment.path] = content
    return Cleaning((*removals, *_beside(workdir, stored, retained)), listings, (*damaged, *stays))


def plan_params_cleaning(workdir: epath.Path, models: Collection[str]) -> Cleaning:
    """Parameters go of all finished artifacts but these, and those that unfinished ones need.

    Logs and summaries stay, and so do parameters kept at chosen steps.
    """
    stored = scan_artifacts(workdir)
    needed = {*models, *_before_unfinished(workdir, stored)}
    removals = []
    for name, artifact in stored.items():
        paths = [artifact.folder / part for part in ("params", "params.tmp")]
        if artifact.finished and name not in needed and any(path.exists() for path in paths):
            size = sum(disk_usage(path)[0] for path in paths)
            removals.append(Removal(artifact.folder, artifact.stage, size, PARAMETERS))
    return Cleaning(tuple(removals), {})


def apply_cleaning(cleaning: Cleaning) -> Iterator[Removal]:
    """Remove it all, in an order in which a kill does no harm; yields what has gone."""
    for path, content in cleaning.listings.items():
        path.unlink() if content is None else write_json(path, content)
    for removal in cleaning.removals:
        folder, config = removal.folder, removal.folder / "config.json"
        for part in removal.parts:
            path, aside = folder / part, folder / f"{part}.tmp"
            for left in (aside, *folder.glob(f"{part}.orbax-*")):  # by a killed writer or cleaner
                _drop(left)
            if path.exists():
                path.rename(aside)  # a part of it is never taken for the whole
                _drop(aside)
        if not removal.parts:
            folder.rmtree()
        elif removal.parts == ORDER and [path.name for path in folder.iterdir()] == [config.name]:
            # Without config.json it would not be known as an artifact, if we were killed then.
            aside = folder.with_name(folder.name + REMAINS)
            folder.rename(aside)
            aside.rmtree()
        elif removal.parts == ORDER:
            config.unlink()
        yield removal


def _drop(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    elif path.exists():
        path.unlink()


def _with_ancestors(stored: Mapping[str, StoredArtifact], names: Collection[str]) -> set[str]:
    """These artifacts and all that they were made from, as far as it is there."""
    closure, waiting = set(), {*names}
    while waiting:
        closure |= waiting
        parents = {p for name in waiting & stored.keys() for p in stored[name].parents}
        waiting = {name for name, a in stored.items() if a.fingerprint in parents} - closure
    return closure


def _before_unfinished(workdir: epath.Path, stored: Mapping[str, StoredArtifact]) -> set[str]:
    """What is needed to make those that are unfinished, and those that train with them."""
    begun = {name for name, artifact in stored.items() if not artifact.finished}
    begun |= {name for _, names in _trainings(workdir) for name in names if name in stored}
    parents = {fingerprint for name in begun for fingerprint in stored[name].parents}
    needed = {name for name, artifact in stored.items() if artifact.fingerprint in parents}
    for experiment in scan_experiments(workdir, dict(stored)):
        for entry in experiment.content.get("models", []):
            if any(name not in stored for name in artifact_folders([entry])):
                compared = {entry["artifact"], entry["unlearned"]} & stored.keys()
                needed |= _with_ancestors(stored, compared)
    return needed


def _trainings(workdir: epath.Path) -> Iterator[tuple[epath.Path, list[str]]]:
    """Folders of saves, and the artifacts that train there; none that a run has not written."""
    for folder in _folders(workdir, "progress-*"):
        try:
            names = read_artifact_names(folder)
        except (OSError, ValueError):
            continue
        if names:
            yield folder, names


def _folders(workdir: epath.Path, pattern: str) -> list[epath.Path]:
    """Folders of the workdir itself, in order; no links."""
    return [path for path in sorted(workdir.glob(pattern)) if path.is_dir() and not is_link(path)]


def _without_models(
    content: Mapping[str, Any], removed: Collection[str]
) -> Mapping[str, Any] | None:
    """An experiment's file without models that go, or are compared with such; None: none is left.

    Attacks that go are no longer listed either.
    """
    models = [
        {
            **entry,
            **{
                kind: [folder for folder in entry[kind] if folder not in removed]
                for kind in ("attacks", "controls")
                if kind in entry
            },
        }
        for entry in content["models"]
        if not {entry["artifact"], entry["unlearned"], entry["oracle"]} & {*removed}
    ]
    if not models:
        return None
    gone = {entry["model"] for entry in content["models"]} - {entry["model"] for entry in models}
    of_models = artifact_folders(models)
    artifacts = [
        entry
        for entry in content["artifacts"]
        if entry["artifact"] not in removed
        and (entry["model"] not in gone or entry["artifact"] in of_models)
    ]
    return {**content, "models": models, "artifacts": artifacts}


def _beside(
    workdir: epath.Path, stored: Mapping[str, StoredArtifact], retained: Collection[str]
) -> Iterator[Removal]:
    """Saves of trainings of which nothing is kept, and states of teachers that are not kept."""
    for folder, names in _trainings(workdir):
        if not {*names} & {*retained}:
            yield Removal(folder, "saves", disk_usage(folder)[0])
    for folder in _folders(workdir, f"*{REMAINS}"):
        match = NAMED.fullmatch(folder.name.removesuffix(REMAINS))
        if match and {path.name for path in folder.iterdir()} <= {"config.json"}:
            yield Removal(folder, "remains", disk_usage(folder)[0])
    fingerprints = {stored[name].fingerprint for name in retained if name in stored}
    for folder in _folders(workdir, "states-*"):
        if not _may_be_of(folder, fingerprints, retained):
            yield Removal(folder, "states", disk_usage(folder)[0])


def _may_be_of(folder: epath.Path, fingerprints: Collection[str], names: Collection[str]) -> bool:
    """Whether states may be of one of these artifacts. Unfinished ones say so by name alone."""
    path, named = folder / "manifest.json", NAMED.fullmatch(folder.name)
    if named and not path.exists() and (folder / "unfinished").is_dir():
        model = named[1].removeprefix("states-")
        return any(f"-{model}-" in name for name in names)
    try:
        return read_json(path)["about"]["model"] in fingerprints
    except (OSError, ValueError, KeyError, TypeError):
        return True

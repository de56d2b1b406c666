"""Removes from a workdir what experiments do not reach; a kill at any time leaves one that works.

First the experiments' files stop listing what will go; then each artifact loses its summary, so
that it counts as unfinished, and then the rest. Nothing is touched that a run has not written.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.store.progress_folders import read_artifact_names
from undo_jax.workdir.inventory import (
    NAMED,
    StoredArtifact,
    StoredExperiment,
    disk_usage,
    is_link,
    scan_artifacts,
    scan_experiments,
)
from undo_jax.workdir.manifest import artifact_folders

# config.json goes last, see `_end`
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
    retained = add_ancestors(stored, reached)
    removed = {name: artifact for name, artifact in stored.items() if name not in retained}
    removals = [
        Removal(artifact.folder, artifact.stage, _own(artifact), ORDER)
        for artifact in removed.values()
    ]
    removals += _beside(workdir, stored, retained)
    foreign = [
        f"{artifact.folder.name}/{name}"
        for artifact in removed.values()
        for name in artifact.strange
    ]
    listed = scan_experiments(workdir, stored)
    listings = {
        experiment.path: drop_models(experiment, removed)
        for experiment in listed
        if not experiment.wrong
    }
    changed = {
        path: content
        for path, content in listings.items()
        if content is None or content.pop("changed")
    }
    damaged = [f"{file.path.name} ({file.wrong})" for file in listed if file.wrong]
    return Cleaning(tuple(removals), changed, (*damaged, *foreign))


def plan_params_cleaning(workdir: epath.Path, models: Collection[str]) -> Cleaning:
    """Parameters go of all finished artifacts but these, and those that unfinished ones need.

    Logs and summaries stay, and so do parameters kept at chosen steps.
    """
    stored = scan_artifacts(workdir)
    needed = set(models) | _before_unfinished(workdir, stored)
    removals = []
    for artifact in (
        artifact for name, artifact in stored.items() if artifact.finished and name not in needed
    ):
        paths = [artifact.folder / name for name in ("params", "params.tmp")]
        if any(path.exists() for path in paths):
            size = sum(disk_usage(path)[0] for path in paths)
            removals.append(Removal(artifact.folder, artifact.stage, size, PARAMETERS))
    return Cleaning(tuple(removals), {})


def add_ancestors(stored: Mapping[str, StoredArtifact], names: Collection[str]) -> set[str]:
    """These artifacts and all that they were made from, as far as it is there."""
    by_fingerprint = {artifact.fingerprint: name for name, artifact in stored.items()}
    closure, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            parents = stored[name].parents if name in stored else ()
            waiting |= {by_fingerprint[parent] for parent in parents if parent in by_fingerprint}
    return closure


def _before_unfinished(workdir: epath.Path, stored: Mapping[str, StoredArtifact]) -> set[str]:
    """What is needed to make those that are unfinished, and those that train with them."""
    by_fingerprint = {artifact.fingerprint: name for name, artifact in stored.items()}
    begun = {name for name, artifact in stored.items() if not artifact.finished}
    begun |= {name for _, names in _trainings(workdir) for name in names if name in stored}
    parents = {fingerprint for name in begun for fingerprint in stored[name].parents}
    needed = {by_fingerprint[parent] for parent in parents & by_fingerprint.keys()}
    for experiment in scan_experiments(workdir, dict(stored)):
        for entry in experiment.content.get("models", []):
            if any(name not in stored for name in artifact_folders([entry])):
                compared = {entry["artifact"], entry["unlearned"]} & stored.keys()
                needed |= add_ancestors(stored, compared)
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
    paths = sorted(workdir.glob(pattern))
    return [path for path in paths if path.is_dir() and not is_link(path)]


def drop_models(experiment: StoredExperiment, removed: Collection[str]) -> dict[str, Any] | None:
    """An experiment's file without models that go, or are compared with such; None: none is left.

    `changed` says whether that is another content.
    """
    models = []
    for entry in experiment.content["models"]:
        if {entry["artifact"], entry["unlearned"], entry["oracle"]} & {*removed}:
            continue
        attacks = {k: entry[k] for k in ("attacks", "controls") if k in entry}
        remaining = {
            k: [folder for folder in folders_of if folder not in removed]
            for k, folders_of in attacks.items()
        }
        models.append({**entry, **remaining})
    if not models:
        return None
    listed = [e for e in experiment.content["artifacts"] if e["artifact"] not in removed]
    names, before = (
        {e["model"] for e in folders_of} for folders_of in (models, experiment.content["models"])
    )
    listed = [e for e in listed if e["model"] not in before - names or _is_of(e, models)]
    content = {**experiment.content, "models": models, "artifacts": listed}
    return {**content, "changed": content != experiment.content}


def _is_of(artifact: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> bool:
    return artifact["artifact"] in artifact_folders(models)


def _own(artifact: StoredArtifact) -> int:
    """Bytes of an artifact's own files."""
    return artifact.bytes - sum(disk_usage(artifact.folder / name)[0] for name in artifact.strange)


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


def apply_cleaning(cleaning: Cleaning) -> Iterator[Removal]:
    """Remove it all, in an order in which a kill does no harm; yields what has gone."""
    for path, content in cleaning.listings.items():
        path.unlink() if content is None else write_json(path, content)
    for removal in cleaning.removals:
        if not removal.parts:
            removal.folder.rmtree()
        for part in removal.parts:
            _remove(removal.folder, part)
        if removal.parts == ORDER:
            _end(removal.folder)
        yield removal


def _end(folder: epath.Path) -> None:
    """Remove an artifact's config.json and, where nothing of others is in it, its folder.

    Without the first it would not be known as an artifact, if we were killed between the two.
    """
    config = folder / "config.json"
    if [path.name for path in folder.iterdir()] == [config.name]:
        aside = folder.with_name(folder.name + REMAINS)
        folder.rename(aside)
        aside.rmtree()
    else:
        config.unlink()


def _remove(folder: epath.Path, part: str) -> None:
    """Remove a file or folder of an artifact, and what a killed writer or cleaner left of it."""
    path, aside = folder / part, folder / f"{part}.tmp"
    for old in (aside, *folder.glob(f"{part}.orbax-*")):
        _drop(old)
    if path.exists():
        path.rename(aside)  # a part of it is never taken for the whole
        _drop(aside)


def _drop(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    elif path.exists():
        path.unlink()

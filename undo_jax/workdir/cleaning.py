"""Removes from a workdir what experiments do not reach; a kill at any time leaves one that works.

First the experiments' files stop listing what will go; then each artifact loses its summary, so
that it counts as unfinished, and then the rest. Nothing is touched that a run has not written.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.store.progress_folders import artifacts_of
from undo_jax.workdir.inventory import NAMED, Found, Listed, artifacts, experiments, is_link, usage
from undo_jax.workdir.manifest import folders

# config.json goes last, see `_end`
ORDER = ("summary.json", "scores.json", "params", "steps", "metrics.jsonl")
REMAINS = ".removed"  # of a folder's name, when only config.json is left in it
PARAMETERS = ("params",)


@dataclass(frozen=True)
class Removal:
    """What goes: a whole folder of ours, or parts of an artifact's."""

    folder: epath.Path
    what: str  # kind of artifact, or what it is
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
        return sum(one.bytes for one in self.removals)


def whole(workdir: epath.Path, reached: Collection[str]) -> Cleaning:
    """Everything goes but the artifacts with these names of folders, and their ancestors."""
    there = artifacts(workdir)
    kept = with_ancestors(there, reached)
    going = {name: one for name, one in there.items() if name not in kept}
    removals = [Removal(one.folder, one.stage, _own(one), ORDER) for one in going.values()]
    removals += _beside(workdir, there, kept)
    strange = [f"{o.folder.name}/{name}" for o in going.values() for name in o.strange]
    found = experiments(workdir, there)
    listings = {one.path: without(one, going) for one in found if not one.wrong}
    changed = {path: new for path, new in listings.items() if new is None or new.pop("changed")}
    wrong = [f"{one.path.name} ({one.wrong})" for one in found if one.wrong]
    return Cleaning(tuple(removals), changed, (*wrong, *strange))


def parameters(workdir: epath.Path, models: Collection[str]) -> Cleaning:
    """Parameters go of all finished artifacts but these, and those that unfinished ones need.

    Logs and summaries stay, and so do parameters kept at chosen steps.
    """
    there = artifacts(workdir)
    needed = set(models) | _before_unfinished(workdir, there)
    removals = []
    for one in (one for name, one in there.items() if one.finished and name not in needed):
        some = [one.folder / name for name in ("params", "params.tmp")]
        if any(path.exists() for path in some):
            size = sum(usage(path)[0] for path in some)
            removals.append(Removal(one.folder, one.stage, size, PARAMETERS))
    return Cleaning(tuple(removals), {})


def with_ancestors(there: Mapping[str, Found], names: Collection[str]) -> set[str]:
    """These artifacts and all that they were made from, as far as it is there."""
    by_fingerprint = {one.fingerprint: name for name, one in there.items()}
    known, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        if name not in known:
            known.add(name)
            parents = there[name].parents if name in there else ()
            waiting |= {by_fingerprint[one] for one in parents if one in by_fingerprint}
    return known


def _before_unfinished(workdir: epath.Path, there: Mapping[str, Found]) -> set[str]:
    """What is needed to make those that are unfinished, and those that train with them."""
    by_fingerprint = {one.fingerprint: name for name, one in there.items()}
    begun = {name for name, one in there.items() if not one.finished}
    begun |= {name for _, names in _trainings(workdir) for name in names if name in there}
    parents = {fingerprint for name in begun for fingerprint in there[name].parents}
    needed = {by_fingerprint[one] for one in parents & by_fingerprint.keys()}
    for one in experiments(workdir, dict(there)):
        for entry in one.content.get("models", []):
            if any(name not in there for name in folders([entry])):
                known = {entry["artifact"], entry["unlearned"]} & there.keys()
                needed |= with_ancestors(there, known)
    return needed


def _trainings(workdir: epath.Path) -> Iterator[tuple[epath.Path, list[str]]]:
    """Folders of saves, and the artifacts that train there; none that a run has not written."""
    for folder in _folders(workdir, "progress-*"):
        try:
            names = artifacts_of(folder)
        except (OSError, ValueError):
            continue
        if names:
            yield folder, names


def _folders(workdir: epath.Path, pattern: str) -> list[epath.Path]:
    """Folders of the workdir itself, in order; no links."""
    return [one for one in sorted(workdir.glob(pattern)) if one.is_dir() and not is_link(one)]


def without(one: Listed, going: Collection[str]) -> dict[str, Any] | None:
    """An experiment's file without models that go, or are compared with such; None: none is left.

    `changed` says whether that is another content.
    """
    models = []
    for entry in one.content["models"]:
        if {entry["artifact"], entry["unlearned"], entry["oracle"]} & {*going}:
            continue
        on = {k: entry[k] for k in ("attacks", "controls") if k in entry}
        left = {k: [folder for folder in of if folder not in going] for k, of in on.items()}
        models.append({**entry, **left})
    if not models:
        return None
    listed = [e for e in one.content["artifacts"] if e["artifact"] not in going]
    names, before = ({e["model"] for e in of} for of in (models, one.content["models"]))
    listed = [e for e in listed if e["model"] not in before - names or _is_of(e, models)]
    content = {**one.content, "models": models, "artifacts": listed}
    return {**content, "changed": content != one.content}


def _is_of(artifact: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> bool:
    return artifact["artifact"] in folders(models)


def _own(one: Found) -> int:
    """Bytes of an artifact's own files."""
    return one.bytes - sum(usage(one.folder / name)[0] for name in one.strange)


def _beside(
    workdir: epath.Path, there: Mapping[str, Found], kept: Collection[str]
) -> Iterator[Removal]:
    """Saves of trainings of which nothing is kept, and states of teachers that are not kept."""
    for folder, names in _trainings(workdir):
        if not {*names} & {*kept}:
            yield Removal(folder, "saves", usage(folder)[0])
    for folder in _folders(workdir, f"*{REMAINS}"):
        known = NAMED.fullmatch(folder.name.removesuffix(REMAINS))
        if known and {path.name for path in folder.iterdir()} <= {"config.json"}:
            yield Removal(folder, "remains", usage(folder)[0])
    fingerprints = {there[name].fingerprint for name in kept if name in there}
    for folder in _folders(workdir, "states-*"):
        if not _may_be_of(folder, fingerprints, kept):
            yield Removal(folder, "states", usage(folder)[0])


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


def carry_out(cleaning: Cleaning) -> Iterator[Removal]:
    """Remove it all, in an order in which a kill does no harm; yields what has gone."""
    for path, content in cleaning.listings.items():
        path.unlink() if content is None else write_json(path, content)
    for one in cleaning.removals:
        if not one.parts:
            one.folder.rmtree()
        for part in one.parts:
            _remove(one.folder, part)
        if one.parts == ORDER:
            _end(one.folder)
        yield one


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

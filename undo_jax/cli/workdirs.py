"""`undo-jax list WORKDIR` and `undo-jax clean FILES`."""

import datetime
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from etils import epath
from tyro.conf import Positional, arg

from undo_jax.cli.flags import MaybeText, Switch, Workdir
from undo_jax.graph.model_graph import build_graph
from undo_jax.logs.log import console, results
from undo_jax.runner.load_experiment import errors_of_users, load
from undo_jax.runtime import workdir_lock
from undo_jax.runtime.atomic_files import absolute_path, is_remote
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.workdir import cleaning, inventory
from undo_jax.workdir.cleaning import Cleaning
from undo_jax.workdir.inventory import StoredArtifact, StoredExperiment

Files = Annotated[Positional[tuple[str, ...]], arg(metavar="FILES", help_behavior_hint="")]
NONE = "–"
ROWS = 20  # kinds of what goes that are listed


def list_workdir(workdir: Workdir) -> None:
    """List what is in a workdir: experiments, their models, sizes, ages, and what is unfinished.

    Args:
        workdir: the folder of their runs; may be gs://.
    """
    there = inventory.scan_artifacts(workdir)
    found = inventory.scan_experiments(workdir, there)
    if not there and not found:
        raise FileNotFoundError(f"{workdir} holds no run: give the workdir of one")
    now = datetime.datetime.now().timestamp()
    for one in found:
        results.print(*experiment_lines(one, now), sep="\n", soft_wrap=True, highlight=False)
    known = {name for one in found for name in one.owners}
    others = [one for name, one in there.items() if name not in known]
    if others:
        results.print("of no experiment that is listed:", soft_wrap=True)
        rows = [(stage, some) for stage, some in _by_stage(others).items()]
        results.print(*_table(rows, now), sep="\n", soft_wrap=True, highlight=False)
    root = absolute_path(epath.Path(workdir))
    total, running = inventory.disk_usage(root)[0], workdir_lock.is_locked(root)
    results.print(
        f"{len(there)} artifacts; {format_bytes(total)} in all, with saves and reports"
        + ("; a run writes here now" if running else ""),
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def experiment_lines(one: StoredExperiment, now: float) -> list[str]:
    """An experiment's line, and one for each of its models."""
    if one.wrong:
        return [f"{one.name}: {one.wrong}", ""]
    left = len(one.missing)
    state = f"{left} of {len(one.owners)} unfinished" if left else "finished"
    groups: dict[str, list[StoredArtifact]] = {model: [] for model in one.owners.values()}
    for folder, made in one.artifacts.items():
        groups[one.owners[folder]].append(made)
    lists = {model: list(one.owners.values()).count(model) for model in groups}
    earlier = {entry["model"] for entry in one.content["models"] if entry.get("earlier")}
    rows = [(f"{m} (earlier)" if m in earlier else m, some) for m, some in groups.items()]
    size = format_bytes(sum(made.bytes for made in one.artifacts.values()))
    return [f"{one.name}: {state}, {size}", *_table(rows, now, list(lists.values())), ""]


def _by_stage(some: Iterable[StoredArtifact]) -> dict[str, list[StoredArtifact]]:
    found: dict[str, list[StoredArtifact]] = {}
    for one in some:
        found.setdefault(one.stage, []).append(one)
    return found


def _table(
    rows: Sequence[tuple[str, Sequence[StoredArtifact]]], now: float, wanted: Sequence[int] = ()
) -> list[str]:
    """Lines of a table: finished artifacts of all, by stage, size, age of the last one."""
    cells = [("model" if wanted else "stage", "stages", "finished", "size", "age")]
    for i, (name, some) in enumerate(rows):
        stages = _by_stage(some)
        done, count = sum(one.finished for one in some), wanted[i] if wanted else len(some)
        size, last = sum(one.bytes for one in some), max((one.changed for one in some), default=0)
        told = " ".join(f"{stage}×{len(of)}" for stage, of in stages.items()) or NONE
        age = duration(now - last) if last else NONE
        cells.append((name, told, f"{done}/{count}", format_bytes(size), age))
    if not wanted:  # a row is a stage
        cells = [(name, "", *others) for name, _, *others in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    return [_line(row, widths) for row in cells]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Texts to the left, numbers to the right; columns without width are left out."""
    sides = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
    cells = [side(text, width) for side, text, width in zip(sides, row, widths, strict=True)]
    return "  ".join(["", *(cell for cell in cells if cell)]).rstrip()


def duration(seconds: float) -> str:
    """An age in the largest unit of which it has two, e.g. 3 d, 40 h, 12 min."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@errors_of_users()
def clean(
    files: Files, /, workdir: MaybeText = None, yes: Switch = False, parameters_only: Switch = False
) -> None:
    """Remove from a workdir what these experiments do not reach, after asking.

    An experiment is a Python file, or WORKDIR/experiment-NAME.json for what its runs have listed,
    with the flags that they had. Its models, what they are made from and the attacks on them stay.
    Reports stay, and so does what a run has not made. --parameters-only also keeps the parameters
    of these experiments' models, and of what unfinished ones are made from, and all logs; a run
    makes again what it needs.

    Args:
        files: experiments to keep.
        workdir: where to remove, by default runs/NAME, or the folder of the JSON file.
        yes: do not ask.
        parameters_only: remove parameters alone, of attacks and of what is not of these files.
    """
    if not files:
        raise ValueError("which experiments stay? e.g. undo-jax clean runs/mine/experiment-x.json")
    place = epath.Path(workdir) if workdir else _only(sorted({str(_workdir(f)) for f in files}))
    if is_remote(place):
        raise ValueError(f"{place}: a bucket has no locks, so a run could write there: use a disk")
    if not place.is_dir():
        raise FileNotFoundError(f"there is no workdir {place}: give --workdir")
    with workdir_lock.lock_workdir(place, patience=0):
        keep = {name for file in files for name in reached(file, place, parameters_only)}
        how = cleaning.plan_params_cleaning if parameters_only else cleaning.plan_cleaning
        found = how(absolute_path(place), keep)
        for line in told(found, parameters_only):
            results.print(line, soft_wrap=True, highlight=False)
        if not found.removals and not found.listings:
            return
        if not (yes or _agreed(f"remove {format_bytes(found.bytes)} from {place}? [y/N] ")):
            results.print("nothing is removed")
            return
        gone = list(cleaning.apply_cleaning(found))
        console.print(f"removed {format_bytes(sum(one.bytes for one in gone))}", soft_wrap=True)


def reached(file: str, workdir: epath.Path, models_only: bool) -> set[str]:
    """Names of folders of an experiment's artifacts, or of its models alone."""
    if file.endswith(".json"):
        one = inventory.read_experiment(epath.Path(file), {})
        if one.wrong:
            raise ValueError(one.wrong)
        own = {entry["artifact"] for entry in one.content["models"]}
        return own if models_only else own | one.owners.keys()
    experiment = load(file).experiment()
    planned = build_graph(
        experiment.recipes().values(), experiment.seeds, experiment.setting, workdir
    )
    some = planned.models
    if models_only:
        some = [
            model for recipe in experiment.models.values() for model in planned.models_of(recipe)
        ]
    return {model.artifact.folder.name for model in some}


def told(found: Cleaning, parameters_only: bool) -> list[str]:
    """What would go, by kind, with sizes; the files that change; what stays all the same."""
    kinds: dict[str, list[int]] = {}
    for one in found.removals:
        kinds.setdefault(one.what, []).append(one.bytes)
    of = "parameters of " if parameters_only else ""
    lines = [f"  {of}{len(s)} × {kind}: {format_bytes(sum(s))}" for kind, s in kinds.items()]
    for path, content in found.listings.items():
        left = "is removed" if content is None else f"lists {len(content['models'])} models"
        lines.append(f"  {path.name} {left}")
    lines += [f"  stays, for it is not ours or damaged: {name}" for name in found.stays]
    if not kinds and not found.listings:
        return ["nothing to remove", *lines]
    return [f"{len(found.removals)} to remove, {format_bytes(found.bytes)}:", *lines]


def _workdir(file: str) -> Path:
    """Where an experiment's runs go, if no flag says it."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no experiment {file}: give a Python file, or a JSON one")
    if file.endswith(".json"):
        return Path(file).parent
    return Path("runs") / load(file).name


def _only(places: Sequence[str]) -> epath.Path:
    if len(places) > 1:
        raise ValueError(f"these are of several workdirs ({', '.join(places)}): give --workdir")
    return epath.Path(places[0])


def _agreed(question: str) -> bool:
    """Whether a person at the terminal says yes. Raises ValueError where nobody can be asked."""
    if not (sys.stdin and sys.stdin.isatty()):
        raise ValueError("nobody is here to say yes: give --yes")
    return input(question).strip().lower() in ("y", "yes")

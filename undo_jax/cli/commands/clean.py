"""`undo-jax clean FILES`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from etils import epath
from tyro.conf import Positional, arg

from undo_jax.cli.flags import MaybeText, Switch
from undo_jax.graph.model_graph import build_graph
from undo_jax.logs.log import console, results
from undo_jax.runner.load_experiment import errors_of_users, load
from undo_jax.runtime import workdir_lock
from undo_jax.runtime.atomic_files import absolute_path, is_remote
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.workdir import cleaning, inventory
from undo_jax.workdir.cleaning import Cleaning

ORDER = 90
Files = Annotated[Positional[tuple[str, ...]], arg(metavar="FILES", help_behavior_hint="")]


@errors_of_users()
def clean(
    files: Files, /, workdir: MaybeText = None, yes: Switch = False, parameters_only: Switch = False
) -> None:
    """Remove from a workdir what these experiments do not use, after asking.

    An experiment is a Python file, or WORKDIR/experiment-NAME.json for what its runs have listed,
    with the flags that they had. Its models, what they are made from and the attacks on them stay.
    Reports stay, and so does what a run has not made. --parameters-only removes parameters alone:
    it keeps all logs, and the parameters of these experiments' models and of what unfinished ones
    are made from. A run makes again what it needs.

    Args:
        files: experiments to keep.
        workdir: where to remove, by default runs/NAME, or the folder of the JSON file.
        yes: do not ask.
        parameters_only: remove parameters alone, of attacks and of what is not of these files.
    """
    if not files:
        raise ValueError("which experiments stay? e.g. undo-jax clean runs/mine/experiment-x.json")
    root = epath.Path(workdir) if workdir else _only(sorted({str(_workdir(f)) for f in files}))
    if is_remote(root):
        raise ValueError(f"{root}: a bucket has no locks, so a run could write there: use a disk")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no workdir {root}: give --workdir")
    with workdir_lock.lock_workdir(root, patience=0):
        keep = {name for file in files for name in used_folders(file, root, parameters_only)}
        plan_removal = cleaning.plan_params_cleaning if parameters_only else cleaning.plan_cleaning
        planned = plan_removal(absolute_path(root), keep)
        for line in removal_lines(planned, parameters_only):
            results.print(line, soft_wrap=True, highlight=False)
        if not planned.removals and not planned.listings:
            return
        if not (yes or _confirmed(f"remove {format_bytes(planned.bytes)} from {root}? [y/N] ")):
            results.print("nothing is removed")
            return
        removed = sum(removal.bytes for removal in cleaning.apply_cleaning(planned))
        console.print(f"removed {format_bytes(removed)}", soft_wrap=True)


def used_folders(file: str, workdir: epath.Path, models_only: bool) -> set[str]:
    """Returns the names of the folders of an experiment's artifacts, or of its models alone."""
    if file.endswith(".json"):
        listed = inventory.read_experiment(epath.Path(file), {})
        if listed.wrong:
            raise ValueError(listed.wrong)
        folders = {entry["artifact"] for entry in listed.content["models"]}
        return folders if models_only else folders | listed.owners.keys()
    experiment = load(file).experiment()
    graph = build_graph(
        experiment.recipes().values(), experiment.seeds, experiment.setting, workdir
    )
    models = graph.models
    if models_only:
        models = [
            model for recipe in experiment.models.values() for model in graph.models_of(recipe)
        ]
    return {model.artifact.folder.name for model in models}


def removal_lines(planned: Cleaning, parameters_only: bool) -> list[str]:
    """Returns what would go, by kind, with sizes; files that change; what stays all the same."""
    sizes: dict[str, list[int]] = {}
    for removal in planned.removals:
        sizes.setdefault(removal.label, []).append(removal.bytes)
    prefix = "parameters of " if parameters_only else ""
    lines = [f"  {prefix}{len(s)} × {kind}: {format_bytes(sum(s))}" for kind, s in sizes.items()]
    for path, content in planned.listings.items():
        change = "is removed" if content is None else f"lists {len(content['models'])} models"
        lines.append(f"  {path.name} {change}")
    lines += [f"  stays, for it is not ours or damaged: {name}" for name in planned.stays]
    if not sizes and not planned.listings:
        return ["nothing to remove", *lines]
    return [f"{len(planned.removals)} to remove, {format_bytes(planned.bytes)}:", *lines]


def _workdir(file: str) -> Path:
    """Returns where an experiment's runs go if no flag says it."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no experiment {file}: give a Python file, or a JSON one")
    if file.endswith(".json"):
        return Path(file).parent
    return Path("runs") / load(file).name


def _only(workdirs: Sequence[str]) -> epath.Path:
    if len(workdirs) > 1:
        raise ValueError(f"these are of several workdirs ({', '.join(workdirs)}): give --workdir")
    return epath.Path(workdirs[0])


def _confirmed(question: str) -> bool:
    """Whether a person at the terminal says yes. Raises ValueError where nobody can be asked."""
    if not (sys.stdin and sys.stdin.isatty()):
        raise ValueError("no terminal to ask for confirmation: give --yes")
    return input(question).strip().lower() in ("y", "yes")

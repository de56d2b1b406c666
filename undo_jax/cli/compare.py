"""`undo-jax compare A B`."""

import os
from typing import Annotated

from etils import epath
from tyro.conf import Positional, arg

from undo_jax.logs.log import results
from undo_jax.report import read_logs
from undo_jax.report.compare import Side, grid, legend, unmatched
from undo_jax.report.studies import Study
from undo_jax.report.tables import Grid
from undo_jax.workdir import inventory
from undo_jax.workdir.inventory import StoredExperiment

A = Annotated[Positional[str], arg(metavar="A")]
B = Annotated[Positional[str], arg(metavar="B")]


def compare(a: A, b: B, /) -> None:
    """Compare two models, or two experiments: their scores, and the differences seed by seed.

    A model is WORKDIR:NAME by its name in the report, WORKDIR/experiment-NAME.json:NAME where
    several experiments have it, or the folder of its artifact, which is one seed. An experiment is
    WORKDIR, or WORKDIR/experiment-NAME.json where there are several.

    Args:
        a: a model or an experiment.
        b: another one.
    """
    left, right = side(a), side(b)
    results.print(table(grid(left, right)))
    for line in unmatched(left, right):
        results.print(line, soft_wrap=True)
    results.print(legend(left), highlight=False)


def side(said: str) -> Side:
    """What an argument means. Raises ValueError or FileNotFoundError for what is not there."""
    place, model = _split(said)
    if (place / "config.json").exists():
        return _of_artifact(place)
    if place.suffix == ".json":
        found = [inventory.read_experiment(place, {})]
    else:
        paths = sorted(place.glob("experiment-*.json"))
        found = [inventory.read_experiment(path, {}) for path in paths]
    one = _chosen(place, [one for one in found if not model or model in _models(one)], model)
    return Side(Study("", read_logs(one.path.parent, one.name)), model)


def _split(said: str) -> tuple[epath.Path, str]:
    """The path, and after a colon the name of a model."""
    for at in [len(said), *(i for i in range(len(said) - 1, 0, -1) if said[i] == ":")]:
        place = epath.Path(said[:at])
        if os.fspath(place) and place.exists():
            return place, said[at + 1 :]
    raise FileNotFoundError(
        f"there is no {said}: give a workdir, WORKDIR/experiment-NAME.json or an artifact's "
        "folder; a model's name follows after a colon"
    )


def _of_artifact(folder: epath.Path) -> Side:
    """The model with a seed that is in a folder."""
    for path in sorted(folder.parent.glob("experiment-*.json")):
        one = inventory.read_experiment(path, {})
        for entry in one.content.get("models", []):
            if entry["artifact"] == folder.name:
                study = Study("", read_logs(folder.parent, one.name))
                return Side(study, entry["model"], entry["seed"])
    raise ValueError(f"{folder} is no model of a report: give one of those that `list` names")


def _models(one: StoredExperiment) -> list[str]:
    return [entry["model"] for entry in one.content.get("models", [])]


def _chosen(place: epath.Path, found: list[StoredExperiment], model: str) -> StoredExperiment:
    """The only one. Raises ValueError for none or several, and what is wrong with it."""
    what = f"experiment with a model {model!r}" if model else "experiment"
    if not found:
        raise FileNotFoundError(f"{place} holds no {what}: `undo-jax list` shows what is there")
    if len(found) > 1:
        known = ", ".join(one.path.name for one in found)
        raise ValueError(f"{place} holds several experiments ({known}): give one of these files")
    if found[0].wrong:
        raise ValueError(found[0].wrong)
    return found[0]


def table(made: Grid):
    """For the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
    for i, name in enumerate(made.header):
        shown.add_column(Text(name), justify="right" if i else "left", vertical="top")
    for row in made.rows:
        shown.add_row(row[0], *(Text(text.replace(" [", "\n[")) for text in row[1:]))
    return shown

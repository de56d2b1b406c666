"""`undo-jax compare A B`."""

import os
from typing import Annotated

from etils import epath
from tyro.conf import Positional, arg

from undo_jax.cli.flags import MinRetain
from undo_jax.logs.log import results
from undo_jax.report import read_logs
from undo_jax.report.compare import Side, attacked_differently, grid, legend, unmatched, unqualified
from undo_jax.report.studies import Study
from undo_jax.report.tables import Grid
from undo_jax.retain_bound import MIN_RETAIN
from undo_jax.workdir import inventory
from undo_jax.workdir.inventory import StoredExperiment

ORDER = 80
A = Annotated[Positional[str], arg(metavar="A")]
B = Annotated[Positional[str], arg(metavar="B")]


def compare(a: A, b: B, /, min_retain: MinRetain = MIN_RETAIN) -> None:
    """Compare two models, or two experiments: their scores, and the differences seed by seed.

    A model is WORKDIR:NAME by its name in the report, WORKDIR/experiment-NAME.json:NAME where
    several experiments have it, or the folder of its artifact, which is one seed. An experiment is
    WORKDIR, or WORKDIR/experiment-NAME.json where there are several.

    Args:
        a: a model or an experiment.
        b: another one.
        min_retain: attacks count that leave this share of the retain score; 0: all attacks.
    """
    first, second = read_side(a, min_retain), read_side(b, min_retain)
    results.print(_table(grid(first, second)))
    for remarks in (unmatched, attacked_differently, unqualified):
        for line in remarks(first, second):
            results.print(line, soft_wrap=True, highlight=False)
    results.print(legend(first), highlight=False)


def read_side(argument: str, min_retain: float = MIN_RETAIN) -> Side:
    """Returns the model or experiment that an argument names.

    Raises FileNotFoundError for what does not exist, ValueError for what is unclear or damaged.
    """
    path, model = _split(argument)
    if (path / "config.json").exists():
        return _side_of_artifact(path, min_retain)
    files = [path] if path.suffix == ".json" else sorted(path.glob("experiment-*.json"))
    listings = [inventory.read_experiment(file, {}) for file in files]
    if model:
        has_model = [listed for listed in listings if model in _models(listed)]
        listings = has_model or [listed for listed in listings if listed.wrong]
    listed = _only(path, listings, model)
    logs = read_logs(listed.path.parent, listed.name, min_retain)
    return Side(Study("", logs), model)


def _split(argument: str) -> tuple[epath.Path, str]:
    """Returns the path, and after a colon the name of a model."""
    colons = [i for i in range(len(argument) - 1, 0, -1) if argument[i] == ":"]
    for end in [len(argument), *colons]:
        path = epath.Path(argument[:end])
        if os.fspath(path) and path.exists():
            return path, argument[end + 1 :]
    raise FileNotFoundError(
        f"there is no {argument}: give a workdir, WORKDIR/experiment-NAME.json or an artifact's "
        "folder; a model's name follows after a colon"
    )


def _side_of_artifact(folder: epath.Path, min_retain: float) -> Side:
    """Returns the model, with one seed, that a folder holds."""
    files = sorted(folder.parent.glob("experiment-*.json"))
    listings = [inventory.read_experiment(path, {}) for path in files]
    for listed in listings:
        for entry in listed.content.get("models", []):
            if entry["artifact"] == folder.name:
                study = Study("", read_logs(folder.parent, listed.name, min_retain))
                return Side(study, entry["model"], entry["seed"])
    if wrong := next(filter(None, (listed.wrong for listed in listings)), ""):
        raise ValueError(wrong)
    raise ValueError(f"{folder} is no model of a report: give one of those that `list` names")


def _models(listed: StoredExperiment) -> list[str]:
    return [entry["model"] for entry in listed.content.get("models", [])]


def _only(path: epath.Path, listings: list[StoredExperiment], model: str) -> StoredExperiment:
    """Returns the only experiment. Raises ValueError for several or for a damaged file."""
    kind = f"experiment with a model {model!r}" if model else "experiment"
    if not listings:
        raise FileNotFoundError(f"{path} holds no {kind}: `undo-jax list` shows what is there")
    if len(listings) > 1:
        names = ", ".join(listed.path.name for listed in listings)
        raise ValueError(f"{path} holds several experiments ({names}): give one of these files")
    if listings[0].wrong:
        raise ValueError(listings[0].wrong)
    return listings[0]


def _table(cells: Grid):
    """Returns the table for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
    for i, name in enumerate(cells.header):
        table.add_column(Text(name), justify="right" if i else "left", vertical="top")
    for row in cells.rows:
        table.add_row(row[0], *(Text(text.replace(" [", "\n[")) for text in row[1:]))
    return table

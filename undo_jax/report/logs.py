"""Reads an experiment: the models its file lists, and their artifacts."""

import math
import reprlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from undo_jax.report.artifact_logs import read_artifact
from undo_jax.report.files import (
    NONE,
    as_written,
    check_inside,
    check_name,
    check_no_link,
    number,
    typed,
)
from undo_jax.report.records import ROLES, Entry, Json, Logs, Measure, Origin
from undo_jax.report.worst_case import check_min_retain
from undo_jax.retain_bound import MIN_RETAIN
from undo_jax.runtime.atomic_files import read_json


def names(workdir: epath.PathLike) -> list[str]:
    """Returns the names of the experiments of a workdir, from its files experiment-NAME.json."""
    root, result = epath.Path(workdir), []
    for path in root.glob("experiment-*.json") if root.exists() else ():
        name = path.name.removeprefix("experiment-").removesuffix(".json")
        try:
            check_name(name)
        except ValueError:  # not written by a run
            continue
        result.append(name)
    return sorted(result)


def read_logs(workdir: epath.PathLike, name: str, min_retain: float = MIN_RETAIN) -> Logs:
    """Reads experiment-NAME.json and the artifacts that it lists.

    Args:
        workdir: The folder, or bucket, with the experiment's artifacts.
        name: The experiment's name.
        min_retain: The share of its retain score that a model must keep under an attack that
            counts, from 0 to 1; 0: every attack counts. See `undo_jax.report.worst_case`.

    Returns:
        The models, their artifacts and evaluations; artifacts without summary.json are unfinished.

    Raises:
        FileNotFoundError: The workdir has no experiment of this name.
        ValueError: The name is not safe, a file is damaged, an artifact is outside the workdir, or
            `min_retain` is not from 0 to 1.
    """
    check_name(name)
    check_min_retain(min_retain)
    root = epath.Path(workdir)
    path = root / f"experiment-{name}.json"
    if not path.exists():
        present = ", ".join(names(root)) or "none"
        raise FileNotFoundError(
            f"{root} holds no experiment {name}: give one of its own ({present})"
        )
    remedy = "run the experiment again, which writes it anew and trains nothing"
    content = read_json(path, remedy)
    with as_written(path):
        if typed(content, "name", str) != name:
            raise ValueError(f"its name is {reprlib.repr(content['name'])}")
        metrics = _metrics(content)
        entries = tuple(_entry(record) for record in typed(content, "models", list))
        owners = _owners(typed(content, "artifacts", list), entries)
        _check_distinct(entries)
        origins = tuple(map(_origin, typed(content, "runs", list, default=[])))
    for folder in owners:
        check_no_link(root, folder)
    scored = {entry.artifact for entry in entries if entry.role != "student"}
    attacks = {folder for entry in entries for folder in (*entry.attacks, *entry.controls)}
    artifacts = {
        folder: read_artifact(
            root / folder, label, metrics, scored=folder in scored, attack=folder in attacks
        )
        for folder, label in owners.items()
    }
    listed = {measure.name for measure in metrics}
    for artifact in filter(None, artifacts.values()):
        for metric in {a.metric for a in artifact.attacks} - listed:
            raise ValueError(
                f"{path} lists no metric {metric!r}, which {artifact.folder} is scored by: {remedy}"
            )
    return Logs(
        name=name,
        retain=metrics[0],
        forget=metrics[1],
        other_metrics=tuple(metrics[2:]),
        entries=entries,
        artifacts=tuple(a for a in artifacts.values() if a is not None),
        unfinished=tuple(folder for folder, a in artifacts.items() if a is None),
        owners=owners,
        origins=origins,
        min_retain=min_retain,
    )


def _origin(record: Any) -> Origin:
    """Reads what is recorded of a command."""
    command, date, devices = (typed(record, name, str) for name in ("command", "date", "devices"))
    versions = typed(record, "versions", dict)
    return Origin(command, date, devices, {name: typed(versions, name, str) for name in versions})


def _metrics(content: Json) -> list[Measure]:
    """Reads the headline's metrics, of retain and of forget, then the others."""
    metrics, headline = typed(content, "metrics", dict), typed(content, "headline", list)
    if len({*map(str, headline)}) != 2 or not {*headline} <= metrics.keys():
        raise ValueError(f"its headline is {reprlib.repr(headline)}")
    return [
        Measure(
            label=typed(metrics[name], "label", str),
            higher_is_better=typed(metrics[name], "higher_is_better", bool),
            unit=typed(metrics[name], "unit", str),
            name=name,
        )
        for name in dict.fromkeys([*headline, *metrics])
    ]


def _entry(record: Any) -> Entry:
    """Reads an entry. Raises KeyError, TypeError or ValueError for what no run has written."""
    role, alpha = typed(record, "role", str), typed(record, "alpha", float, int, NONE)
    if role not in ROLES:
        raise ValueError(f"role is {reprlib.repr(role)}")
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}")
    compared = typed(record, "compared", dict, default={})
    entry = Entry(
        model=typed(record, "model", str),
        seed=typed(record, "seed", int, NONE),
        artifact=typed(record, "artifact", str),
        role=role,
        alpha=alpha if alpha is None else float(alpha),
        unlearned=typed(record, "unlearned", str, NONE),
        oracle=typed(record, "oracle", str, NONE),
        attacks=tuple(typed(record, "attacks", list)),
        controls=tuple(typed(record, "controls", list, default=[])),
        earlier=typed(record, "earlier", bool, default=False),
        compared={name: number(score) for name, score in compared.items()},
    )
    references = [folder for folder in (entry.unlearned, entry.oracle) if folder is not None]
    for folder in (entry.artifact, *entry.attacks, *entry.controls, *references):
        check_inside(folder)
    return entry


def _owners(records: list[Any], entries: Sequence[Entry]) -> dict[str, str]:
    """Returns the label of every artifact, by folder, in the order of the experiment."""
    owners: dict[str, str] = {}
    for record in records:
        folder, label = typed(record, "artifact", str), typed(record, "model", str)
        check_inside(folder)
        owners.setdefault(folder, label)
    for entry in entries:
        for folder in (entry.artifact, *entry.attacks, *entry.controls):
            owners.setdefault(folder, entry.model)
    return owners


def _check_distinct(entries: Sequence[Entry]) -> None:
    """Raises ValueError if a model with a seed is listed twice, or a model has two roles."""
    seeds, roles = set(), {}
    for entry in entries:
        label = reprlib.repr(entry.model)
        if (entry.model, entry.seed) in seeds:
            raise ValueError(f"model {label}, seed {entry.seed} is listed twice")
        seeds.add((entry.model, entry.seed))
        role = entry.role, entry.alpha
        if roles.setdefault(entry.model, role) != role:
            raise ValueError(f"model {label} has several roles or alphas")

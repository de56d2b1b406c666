"""Reads logs: what an experiment's file lists, and its artifacts' records and summaries.

Reads experiment-NAME.json, and config.json, metrics.jsonl and summary.json of each artifact.
"""

import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from undo_jax.report.files import (
    NONE,
    Json,
    as_written,
    check_inside,
    check_name,
    number,
    read_json,
    read_lines,
    sealed,
    typed,
    verify,
)
from undo_jax.report.records import (
    ATTACK,
    DISTILLATION,
    ROLES,
    Entry,
    Evaluation,
    Logged,
    Logs,
    Measure,
    Origin,
)

LAST = 2**63  # steps are below
COMPARED = "compared"  # key of a model's scores that compare it with the oracle


def names(workdir: epath.PathLike) -> list[str]:
    """The experiments of a workdir, from the names of their files."""
    root, found = epath.Path(workdir), []
    for path in root.glob("experiment-*.json") if root.exists() else ():
        name = path.name.removeprefix("experiment-").removesuffix(".json")
        try:
            check_name(name)
        except ValueError:  # not written by a run
            continue
        found.append(name)
    return sorted(found)


def read_logs(workdir: epath.PathLike, name: str) -> Logs:
    """Read the artifacts experiment-NAME.json lists; one without a summary.json is unfinished.

    Raises FileNotFoundError without that file, and ValueError for a name that is not safe, a file
    that is damaged, and an artifact that leaves the workdir.
    """
    check_name(name)
    root = epath.Path(workdir)
    path = root / f"experiment-{name}.json"
    if not path.exists():
        there = ", ".join(names(root)) or "none"
        raise FileNotFoundError(f"{root} holds no experiment {name}: give one of its own ({there})")
    again = "run the experiment again, which writes it anew and trains nothing"
    content = read_json(path, again)
    if not sealed(content):
        raise ValueError(f"{path} is damaged (it is not as it was written): {again}")
    with as_written(path):
        if typed(content, "name", str) != name:
            raise ValueError(f"its name is {reprlib.repr(content['name'])}")
        retain, forget, *others = _metrics(content)
        entries = tuple(_entry(root, one) for one in typed(content, "models", list))
        owners = _owners(root, typed(content, "artifacts", list), entries)
        _check_distinct(entries)
        origins = tuple(map(_origin, typed({"runs": [], **content}, "runs", list)))
    scored = {entry.artifact for entry in entries if entry.role != "student"}
    attacks = {folder for entry in entries for folder in (*entry.attacks, *entry.controls)}
    found = {
        folder: read_artifact(
            root / folder, label, (retain, forget, *others), folder in scored, folder in attacks
        )
        for folder, label in owners.items()
    }
    known = {measure.name for measure in (retain, forget, *others)}
    scores = ((folder, a.metric) for folder, made in found.items() if made for a in made.attacks)
    if lost := next(((folder, metric) for folder, metric in scores if metric not in known), None):
        raise ValueError(
            f"{path} lists no metric {lost[1]!r}, which {lost[0]} is scored by: {again}"
        )
    return Logs(
        name=name,
        retain=retain,
        forget=forget,
        others=tuple(others),
        entries=entries,
        artifacts=tuple(a for a in found.values() if a is not None),
        unfinished=tuple(folder for folder, a in found.items() if a is None),
        owners=owners,
        origins=origins,
    )


def _origin(record: Any) -> Origin:
    """What is recorded of a command."""
    versions = typed(record, "versions", dict)
    command, date, devices = (typed(record, name, str) for name in ("command", "date", "devices"))
    return Origin(command, date, devices, {name: typed(versions, name, str) for name in versions})


def _metrics(content: Json) -> list[Measure]:
    """The headline's metrics, of what is retained and of what is forgotten, then the others."""
    metrics, headline = typed(content, "metrics", dict), typed(content, "headline", list)
    if len({*map(str, headline)}) != 2 or not {*headline} <= metrics.keys():
        raise ValueError(f"its headline is {reprlib.repr(headline)}")
    return [_metric(name, metrics[name]) for name in dict.fromkeys([*headline, *metrics])]


def _metric(name: str, record: Any) -> Measure:
    label, better = typed(record, "label", str), typed(record, "higher_is_better", bool)
    return Measure(label, better, typed(record, "unit", str), name)


def _entry(root: epath.Path, record: Any) -> Entry:
    """An entry. Raises KeyError, TypeError or ValueError for what no run has written."""
    role, alpha = typed(record, "role", str), typed(record, "alpha", float, int, NONE)
    if role not in ROLES:
        raise ValueError(f"role is {reprlib.repr(role)}")
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}")
    made = Entry(
        model=typed(record, "model", str),
        seed=typed(record, "seed", int, NONE),
        artifact=typed(record, "artifact", str),
        role=role,
        alpha=alpha if alpha is None else float(alpha),
        unlearned=typed(record, "unlearned", str, NONE),
        oracle=typed(record, "oracle", str, NONE),
        attacks=tuple(typed(record, "attacks", list)),
        controls=tuple(typed({"controls": [], **record}, "controls", list)),
        earlier=typed({"earlier": False, **record}, "earlier", bool),
        compared={n: number(x) for n, x in typed({COMPARED: {}, **record}, COMPARED, dict).items()},
    )
    on_it = *made.attacks, *made.controls
    for folder in (made.artifact, made.unlearned, made.oracle, *on_it):
        if folder is not None:
            check_inside(root, folder)
    if None in on_it:
        raise TypeError("an attack is None")
    return made


def _owners(root: epath.Path, records: list[Any], entries: tuple[Entry, ...]) -> dict[str, str]:
    """The label of every artifact, by folder and in the order in which they are made."""
    owners: dict[str, str] = {}
    for record in records:
        folder, label = typed(record, "artifact", str), typed(record, "model", str)
        check_inside(root, folder)
        owners.setdefault(folder, label)
    for entry in entries:
        for folder in (entry.artifact, *entry.attacks, *entry.controls):
            owners.setdefault(folder, entry.model)
    return owners


def _check_distinct(entries: tuple[Entry, ...]) -> None:
    """Raises ValueError if a model with a seed is listed twice, or a model has two roles."""
    counts = Counter((entry.model, entry.seed) for entry in entries)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"model {reprlib.repr(twice[0][0])}, seed {twice[0][1]} is there twice")
    roles: dict[str, tuple[str, float | None]] = {}
    for entry in entries:
        if roles.setdefault(entry.model, (entry.role, entry.alpha)) != (entry.role, entry.alpha):
            raise ValueError(f"model {reprlib.repr(entry.model)} has several roles or alphas")


def read_artifact(
    folder: epath.Path,
    model: str,
    metrics: Sequence[Measure],
    scored: bool = False,
    attack: bool = False,
) -> Logged | None:
    """One artifact, or None while it is unfinished. Raises ValueError where it is damaged.

    `scored`: it must have scores by the first two metrics, the headline. `attack`: it must be an
    attack.
    """
    again = f"delete {folder}, and run the experiment again"
    if not (folder / "summary.json").exists():
        return None
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder / 'config.json'} is not there, though the model is: {again}")
    config, summary = (read_json(folder / f"{f}.json", again) for f in ("config", "summary"))
    verify(folder, summary)
    with as_written(folder):
        stage, seed = typed(config, "stage", str), typed(config, "seed", int, NONE)
        attacked = stage == ATTACK
        if attack and not attacked:
            raise ValueError(f"stage is {reprlib.repr(stage)}, but it is an attack")
        typed(config, "model", str)
        scores, costs = typed(summary, "eval", dict), ("steps", "tokens", "flops")
        if scored or attacked or scores:
            headline = {metric.name: number(scores[metric.name]) for metric in metrics[:2]}
            others = {m.name: number(scores[m.name]) for m in metrics[2:] if m.name in scores}
            scores = {**headline, **others}
        told: Json = {name: number(summary.get(name)) for name in costs}
        told |= {"recovered": typed(summary, "recovered", bool, NONE), "eval": scores}
        found, unreadable = _attacks(folder, metrics, config, summary) if attacked else ((), 0)
        losses, lost = _losses(folder) if stage == DISTILLATION else ({}, 0)
        return Logged(
            folder=folder.name,
            stage=stage,
            model=model,
            seed=seed,
            summary=told,
            attacks=found,
            unreadable=unreadable + lost,
            settings=_settings(config, stage),
            losses=losses,
            upstream=_upstream(config),
            around=_around(config, stage),
        )


def _upstream(config: Json) -> tuple[str, ...]:
    """Fingerprints of what an artifact was made from; none where config.json does not list them."""
    found = config.get("upstream")
    return tuple(filter(lambda x: isinstance(x, str), found)) if isinstance(found, list) else ()


def _settings(config: Json, stage: str) -> Json:
    """The recipe's own fields, from config.json."""
    said = config.get("config")
    own = said.get(stage) if isinstance(said, dict) else None
    return own if isinstance(own, dict) else {}


def _around(config: Json, stage: str) -> Json:
    """The other parts of its config: the setting, and the model."""
    said = config.get("config")
    return {k: v for k, v in said.items() if k != stage} if isinstance(said, dict) else {}


def _records(folder: epath.Path) -> tuple[list[Json], int]:
    """The records of its training, none without a log, and how many lines are unreadable."""
    path = folder / "metrics.jsonl"
    return read_lines(path) if path.exists() else ([], 0)


def _losses(folder: epath.Path) -> tuple[dict[int, float], int]:
    """Training losses by step, and how many lines of the log are unreadable."""
    records, unreadable = _records(folder)
    found = {typed(r, "step", int): number(r["loss"]) for r in records if "loss" in r}
    if wrong := [step for step in found if not 0 <= step < LAST]:
        raise ValueError(f"a loss at step {reprlib.repr(wrong[0])}")
    return dict(sorted(found.items())), unreadable


Attacks = tuple[tuple[Evaluation, ...], int]  # and how many lines of the log are unreadable


def _attacks(
    folder: epath.Path, metrics: Sequence[Measure], config: Json, summary: Json
) -> Attacks:
    """The evaluations of an attack; if it does not train, its scores as if of step 0."""
    retain, forget = metrics[0].name, metrics[1].name
    records, unreadable = _records(folder)
    said = _settings(config, ATTACK).get("attack")
    said = {"metric": None, **(said if isinstance(said, dict) else {})}
    metric = typed(said, "metric", str, NONE) or forget
    found = read_attacks(records, metric, retain)
    if records or unreadable or number(summary.get("steps")) > 0:
        return found, unreadable
    known = (summary.get("attack"), said.get("name"), folder.name)
    name = next(one for one in known if isinstance(one, str))
    score, kept = (number(summary["eval"][one]) for one in (metric, retain))
    return (Evaluation(name, None, 0, score, kept, metric),), 0


def read_attacks(records: Iterable[Json], metric: str, retain: str) -> tuple[Evaluation, ...]:
    """Evaluation records; if a step is logged twice (by a resumed run) the later one counts."""
    found: dict[tuple[str, float, int], Evaluation] = {}
    for r in records:
        if "eval" in r:
            data, step = typed(r, "attack", str), typed(r, "step", int)
            rate = typed(r, "learning_rate", float, int)
            if not (0 < rate < math.inf and 0 <= step < LAST):
                raise ValueError(f"a record of learning rate {rate} at step {step}")
            score, kept = (number(r["eval"][one]) for one in (metric, retain))
            attack = Evaluation(data, float(rate), step, score, kept, metric)
            found[data, float(rate), step] = attack
    return tuple(found[key] for key in sorted(found))

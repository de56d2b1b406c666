"""Logs in, numbers out: worst-case attacks, robustness and compute of every model.

Reads experiment.json, and config.json, metrics.jsonl and summary.json of each artifact it lists.
"""

import hashlib
import json
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from etils import epath

STAGES = ("pretrain", "unlearn", "noise", "distill", "relearn")
UNLEARNED, DISTILLED, ORACLE = "unlearn-only", "Unlearn-and-Distill", "oracle"
MIN_GAP = 0.01  # in the forget metric's unit; below it robustness is a ratio of noise

NONE = type(None)

Json = dict[str, Any]


# ---- the logs ----


@dataclass(frozen=True)
class Metric:
    """What a score measures, and which way is better."""

    label: str
    higher_is_better: bool


@dataclass(frozen=True)
class Attack:
    """One evaluation during a relearning attack; the learning rate identifies the adversary."""

    data: str
    learning_rate: float
    step: int
    forget: float


@dataclass(frozen=True)
class Artifact:
    """One finished stage of one model and seed."""

    folder: str
    stage: str
    model: str
    alpha: float | None
    seed: int
    summary: Json
    attacks: tuple[Attack, ...] = ()
    unreadable: int = 0  # lines of metrics.jsonl


@dataclass(frozen=True)
class Logs:
    """Everything the report draws on."""

    name: str
    retain: Metric
    forget: Metric
    artifacts: tuple[Artifact, ...]
    unfinished: tuple[str, ...]


def read_logs(workdir: epath.PathLike) -> Logs:
    """Read the artifacts experiment.json lists; one without a summary.json is unfinished.

    Raises ValueError for a file that is damaged, and for a name that leaves the workdir.
    """
    root = epath.Path(workdir)
    path = root / "experiment.json"
    again = "run the experiment again, which writes it anew and trains nothing"
    content = _read_json(path, again)
    if not _sealed(content):
        raise ValueError(f"{path} is damaged (it is not as it was written): {again}")
    with _as_written(path):
        name, folders = _field(content, "name", str), tuple(_field(content, "artifacts", list))
        retain, forget = (_metric(_field(content, one, dict)) for one in ("retain", "forget"))
        for folder in folders:
            _check_inside(root, folder)
    found = {folder: read_artifact(root / folder) for folder in folders}
    return Logs(
        name=name,
        retain=retain,
        forget=forget,
        artifacts=tuple(a for a in found.values() if a is not None),
        unfinished=tuple(folder for folder, a in found.items() if a is None),
    )


def read_artifact(folder: epath.Path) -> Artifact | None:
    """One artifact, or None while it is unfinished. Raises ValueError where it is damaged."""
    if not ((folder / "config.json").exists() and (folder / "summary.json").exists()):
        return None
    again = f"delete {folder}, and run the experiment again"
    config, summary = (_read_json(folder / f"{f}.json", again) for f in ("config", "summary"))
    _verify(folder, summary)
    with _as_written(folder):
        stage, alpha = _field(config, "stage", str), _field(config, "alpha", float, int, NONE)
        STAGES.index(stage)
        scores, costs = _field(summary, "eval", dict), ("steps", "tokens", "flops")
        measured = () if stage == "noise" else ("retain", "forget")  # students are not, yet
        records, unreadable = [], 0
        if stage == "relearn":  # the only stage whose curve the report needs
            records, unreadable = _read_lines(folder / "metrics.jsonl")
        return Artifact(
            folder=folder.name,
            stage=stage,
            model=_field(config, "model", str),
            alpha=alpha if alpha is None else float(alpha),
            seed=_field(config, "seed", int),
            summary={
                **{name: _number(summary.get(name)) for name in costs},
                "recovered": _field(summary, "recovered", bool, NONE),
                "eval": {name: _number(scores[name]) for name in measured},
            },
            attacks=read_attacks(records),
            unreadable=unreadable,
        )


def _verify(folder: epath.Path, summary: Json | None) -> None:
    """Hold a summary against its own hash, and the files beside it against those that it has.

    Raises ValueError for what has changed since it was written. A summary without hashes passes.
    """
    wrong = [] if _sealed(summary) else ["summary.json"]
    known = summary.get("files") if isinstance(summary, dict) and not wrong else None
    for name, known_hash in known.items() if isinstance(known, dict) else ():
        path = folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != known_hash:
            wrong.append(name)
    if wrong:
        raise ValueError(
            f"{folder / wrong[0]} is damaged (it is not as it was written): delete {folder}, and "
            "run the experiment again"
        )


def _sealed(content: Any) -> bool:
    """Whether an object has no hash of all else that is in it, or the right one."""
    if not isinstance(content, dict) or "sha256" not in content:
        return True
    rest = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() == content["sha256"]


def read_attacks(records: Iterable[Json]) -> tuple[Attack, ...]:
    """Evaluation records; of a step logged twice (a resumed run) the later one counts."""
    found: dict[tuple[str, float, int], Attack] = {}
    for r in records:
        if "eval" in r:
            data, step = _field(r, "attack", str), _field(r, "step", int)
            rate = _field(r, "learning_rate", float, int)
            if not (0 < rate < math.inf and 0 <= step < 2**63):
                raise ValueError(f"a record of learning rate {rate} at step {step}")
            attack = Attack(data, float(rate), step, _number(r["eval"]["forget"]))
            found[attack.data, attack.learning_rate, attack.step] = attack
    return tuple(found[key] for key in sorted(found))


def _read_json(path: epath.Path, remedy: str) -> Any:
    """A JSON file. Raises ValueError where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


@contextmanager
def _as_written(path: epath.Path) -> Iterator[None]:
    """Raises ValueError for JSON that no run has written."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is not as a run writes it ({error!r}): delete it, and run the experiment again"
        ) from error


def _field(record: Any, name: str, *kinds: type) -> Any:
    """A field of a JSON object. Raises KeyError without it, TypeError where it is of no kind."""
    value = record[name]
    if type(value) not in kinds:
        raise TypeError(f"{name} is {reprlib.repr(value)}")
    return value


def _metric(record: Json) -> Metric:
    return Metric(_field(record, "label", str), _field(record, "higher_is_better", bool))


def _check_inside(root: epath.Path, name: Any) -> None:
    """Raises TypeError or ValueError for what does not name a folder of the workdir itself."""
    if type(name) is not str or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise TypeError(f"an artifact is {reprlib.repr(name)}")
    if "://" not in os.fspath(root) and os.path.islink(os.path.join(root, name)):
        raise ValueError(f"artifact {name} is a link")


def _read_lines(path: epath.Path) -> tuple[list[Json], int]:
    """The records of a JSONL file, and how many lines a killed writer left broken."""
    records, unreadable = [], 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            unreadable += 1
    return records, unreadable


def _number(value: Any) -> float:
    """Raises TypeError for what is no number."""
    if type(value) not in (int, float, NONE):
        raise TypeError(f"{reprlib.repr(value)} is no number")
    return math.nan if value is None else float(value)


# ---- the numbers ----


@dataclass(frozen=True)
class Spread:
    """One value per seed, nan where undefined; the statistics are over the defined ones."""

    values: tuple[float, ...] = ()

    @property
    def finite(self) -> tuple[float, ...]:
        return tuple(v for v in self.values if math.isfinite(v))

    @property
    def mean(self) -> float:
        if not self.finite:
            return math.nan
        return min(max(math.fsum(self.finite) / len(self.finite), self.low), self.high)  # rounding

    @property
    def low(self) -> float:
        return min(self.finite, default=math.nan)

    @property
    def high(self) -> float:
        return max(self.finite, default=math.nan)


@dataclass(frozen=True)
class Model:
    """A row of the report. Scores are in their metric's unit, robustness and compute in %."""

    name: str
    alpha: float | None
    seeds: tuple[int, ...]  # attacked seeds
    retain: Spread  # before the attack
    forget: Spread  # before the attack
    curve: Mapping[int, Spread]  # relearning step -> strongest attack
    worst: Spread  # P: strongest attack over all steps
    robustness: Spread
    compute_steps: Spread
    compute_flops: Spread
    recovered: tuple[bool, ...]  # per distilled seed
    finals: Mapping[tuple[str, float], Spread]  # (attack data, learning rate) -> last score

    @property
    def fell_short(self) -> bool:
        """Whether any seed ended its distillation below the recovery bar."""
        return not all(self.recovered)


@dataclass(frozen=True)
class Stage:
    """What was run for one model in one stage, over seeds."""

    stage: str
    model: str
    seeds: tuple[int, ...]
    steps: Spread
    tokens: Spread
    flops: Spread


@dataclass(frozen=True)
class Report:
    """The numbers of a report and, once written, its files by name."""

    name: str
    retain: Metric
    forget: Metric
    models: tuple[Model, ...]
    stages: tuple[Stage, ...]
    shown_steps: tuple[int, ...]  # relearning steps the tables quote
    unfinished: tuple[str, ...]
    notes: tuple[str, ...]
    files: Mapping[str, epath.Path] = field(default_factory=dict)

    @property
    def attacked(self) -> tuple[Model, ...]:
        return tuple(m for m in self.models if m.curve)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({s for m in self.attacked for s in m.seeds}))


def analyse(logs: Logs) -> Report:
    """All numbers of the report; raises if no attack has finished."""
    attacks = _attacks_by_model(logs.artifacts)
    if not any(_curve(found, logs.forget) for found in attacks.values()):
        raise ValueError(f"{logs.name}: nothing to report, no relearning attack has finished yet")
    worst = {key: strongest(found, logs.forget) for key, found in attacks.items()}
    owns = _own_artifacts(logs.artifacts)
    alphas = {a.model: a.alpha for a in logs.artifacts if a.alpha is not None}
    names = {name for name, _ in attacks} | {name for name, _ in owns}
    models = tuple(
        _model(name, alphas.get(name), logs, attacks, worst, owns)
        for name in sorted(names, key=lambda n: model_order(n, alphas.get(n)))
    )
    return Report(
        name=logs.name,
        retain=logs.retain,
        forget=logs.forget,
        models=models,
        stages=_stages(logs.artifacts, [m.name for m in models]),
        shown_steps=pick_steps({step for m in models for step in m.curve}),
        unfinished=logs.unfinished,
        notes=_notes(logs, models, attacks),
    )


def strongest(attacks: Iterable[Attack], metric: Metric) -> float:
    """The forget score of the strongest attack: max, or min where lower is better."""
    scores = [a.forget for a in attacks if math.isfinite(a.forget)]
    return (max if metric.higher_is_better else min)(scores, default=math.nan)


def robustness(score: float, unlearned: float, filtered: float, metric: Metric) -> float:
    """100 (P - P_unlearn) / (P_oracle - P_unlearn) in %, P the worst-case forget score.

    nan unless the oracle is more robust than the unlearned model by at least MIN_GAP.
    """
    gap = filtered - unlearned
    ahead = -gap if metric.higher_is_better else gap
    return 100 * (score - unlearned) / gap if ahead >= MIN_GAP else math.nan


def pick_steps(steps: Iterable[int]) -> tuple[int, ...]:
    """The first evaluated steps at or after 1/3 and 1/2 of the way, and the last."""
    grid = sorted(steps)
    picked = (next(s for s in grid if s >= way * grid[-1]) for way in (1 / 3, 1 / 2, 1))
    return tuple(sorted(set(picked)))


def model_order(name: str, alpha: float | None) -> tuple[int, float, str]:
    """Sort key: base, unlearn-only, others, UNDO by alpha, Unlearn-and-Distill, oracle."""
    fixed = {"base": 0, UNLEARNED: 1, DISTILLED: 4, ORACLE: 5}
    rank = fixed.get(name, 2 if alpha is None else 3)
    return rank, -1.0 if alpha is None else alpha, name


Key = tuple[str, int]  # model name, seed


def _attacks_by_model(artifacts: Iterable[Artifact]) -> dict[Key, tuple[Attack, ...]]:
    found: dict[Key, tuple[Attack, ...]] = {}
    for a in artifacts:
        if a.stage == "relearn":
            found[a.model, a.seed] = found.get((a.model, a.seed), ()) + a.attacks
    return found


def _own_artifacts(artifacts: Iterable[Artifact]) -> dict[Key, Artifact]:
    """The stage each model came out of: pretrain, unlearn or distill."""
    made = [a for a in artifacts if a.stage in ("pretrain", "unlearn", "distill")]
    return {(a.model, a.seed): a for a in sorted(made, key=lambda a: STAGES.index(a.stage))}


def _curve(attacks: Iterable[Attack], metric: Metric) -> dict[int, float]:
    """Step -> forget score of the strongest attack at that step."""
    by_step: dict[int, list[Attack]] = {}
    for a in attacks:
        by_step.setdefault(a.step, []).append(a)
    scores = {step: strongest(found, metric) for step, found in sorted(by_step.items())}
    return {step: score for step, score in scores.items() if math.isfinite(score)}


def _finals(attacks: Iterable[Attack]) -> dict[tuple[str, float], float]:
    """(Attack data, learning rate) -> forget score at that attack's last step."""
    return {(a.data, a.learning_rate): a.forget for a in sorted(attacks, key=lambda a: a.step)}


def _model(
    name: str,
    alpha: float | None,
    logs: Logs,
    attacks: Mapping[Key, tuple[Attack, ...]],
    worst: Mapping[Key, float],
    owns: Mapping[Key, Artifact],
) -> Model:
    seeds = tuple(sorted(seed for model, seed in attacks if model == name))
    own = [owns[key] for key in sorted(owns) if key[0] == name]
    curves = [_curve(attacks[name, seed], logs.forget) for seed in seeds]
    steps = sorted({step for curve in curves for step in curve})
    finals = [_finals(attacks[name, seed]) for seed in seeds]
    adversaries = sorted({key for found in finals for key in found})
    return Model(
        name=name,
        alpha=alpha,
        seeds=seeds,
        retain=Spread(tuple(_number(a.summary["eval"]["retain"]) for a in own)),
        forget=Spread(tuple(_number(a.summary["eval"]["forget"]) for a in own)),
        curve={step: Spread(tuple(c.get(step, math.nan) for c in curves)) for step in steps},
        worst=Spread(tuple(worst[name, seed] for seed in seeds)),
        robustness=Spread(
            tuple(
                robustness(
                    worst[name, seed],
                    worst.get((UNLEARNED, seed), math.nan),
                    worst.get((ORACLE, seed), math.nan),
                    logs.forget,
                )
                for seed in seeds
            )
        ),
        compute_steps=Spread(tuple(_compute(a, owns, "steps") for a in own)),
        compute_flops=Spread(tuple(_compute(a, owns, "flops") for a in own)),
        recovered=tuple(bool(a.summary["recovered"]) for a in own if a.stage == "distill"),
        finals={k: Spread(tuple(f[k] for f in finals if k in f)) for k in adversaries},
    )


def _compute(own: Artifact, owns: Mapping[Key, Artifact], unit: str) -> float:
    """Distillation as % of pretraining the same seed's oracle, in steps or FLOPs."""
    oracle = owns.get((ORACLE, own.seed))
    if oracle is None or not (own.stage == "distill" or own is oracle):
        return math.nan
    spent, whole = _number(own.summary.get(unit)), _number(oracle.summary.get(unit))
    return 100 * spent / whole if whole else math.nan


def _stages(artifacts: Iterable[Artifact], names: list[str]) -> tuple[Stage, ...]:
    groups: dict[tuple[str, str], list[Artifact]] = {}
    for a in artifacts:
        groups.setdefault((a.stage, a.model), []).append(a)

    def order(key: tuple[str, str]) -> tuple[int, int, str]:
        stage, model = key
        return STAGES.index(stage), names.index(model) if model in names else -1, model

    def spread(found: list[Artifact], unit: str) -> Spread:
        return Spread(tuple(_number(a.summary.get(unit)) for a in found))

    return tuple(
        Stage(
            stage=key[0],
            model=key[1],
            seeds=tuple(sorted({a.seed for a in groups[key]})),
            steps=spread(groups[key], "steps"),
            tokens=spread(groups[key], "tokens"),
            flops=spread(groups[key], "flops"),
        )
        for key in sorted(groups, key=order)
    )


# ---- what a reader must be told ----


def _notes(
    logs: Logs, models: Iterable[Model], attacks: Mapping[Key, tuple[Attack, ...]]
) -> tuple[str, ...]:
    models = tuple(models)
    named = {m.name: m for m in models}
    notes = [
        f"{m.name} did not recover the teacher's retain score in "
        f"{m.recovered.count(False)} of {len(m.recovered)} seeds."
        for m in models
        if m.fell_short
    ]
    missing = [n for n in (UNLEARNED, ORACLE) if n not in named or not named[n].curve]
    if missing:
        notes.append(f"Robustness is not computed: no finished attack on {' or '.join(missing)}.")
    else:
        undefined = {
            seed
            for m in models
            for seed, value in zip(m.seeds, m.robustness.values, strict=True)
            if math.isnan(value)
        }
        if undefined:
            notes.append(
                f"Robustness is undefined for seed {', '.join(map(str, sorted(undefined)))}: there "
                f"the oracle is not more robust than unlearn-only by at least {MIN_GAP}, the "
                "attack on one of the two has not finished, or a model has diverged."
            )
    if edge := [m.name for m in models if _at_edge(m, attacks, logs.forget)]:
        notes.append(
            "The strongest attack lies at an end of the learning-rate sweep, so a wider sweep "
            f"could be stronger: {', '.join(edge)}."
        )
    if broken := sum(not math.isfinite(a.forget) for found in attacks.values() for a in found):
        notes.append(f"Left out: {broken} evaluations with a non-finite forget score.")
    if unreadable := sum(a.unreadable for a in logs.artifacts):
        notes.append(f"Left out: {unreadable} unreadable lines of metrics.jsonl.")
    return tuple(notes)


def _at_edge(model: Model, attacks: Mapping[Key, tuple[Attack, ...]], metric: Metric) -> bool:
    """Whether in some seed only the ends of the sweep come within MIN_GAP of the worst case."""

    def best_rates(found: tuple[Attack, ...]) -> set[float]:
        top = strongest(found, metric)
        return {a.learning_rate for a in found if abs(a.forget - top) < MIN_GAP}

    rates = sorted({rate for _, rate in model.finals})
    ends = {rates[0], rates[-1]} if len(rates) > 1 else set()
    found = [best_rates(attacks[model.name, seed]) for seed in model.seeds]
    return any(best and best <= ends for best in found)

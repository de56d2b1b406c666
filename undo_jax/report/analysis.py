"""From logs to numbers: worst-case attacks, robustness and compute of every model."""

import math
from collections.abc import Iterable, Mapping, Sequence

from undo_jax.report.cards import HALF, card, spaces
from undo_jax.report.config_table import choices
from undo_jax.report.notes import Case, no_robustness, notes
from undo_jax.report.numbers import (
    Adversary,
    Report,
    Row,
    Spread,
    Stage,
    by_step,
    finals,
    pick_steps,
    robustness,
    strongest,
)
from undo_jax.report.records import ROLES, Entry, Evaluation, Logged, Logs, Measure
from undo_jax.report.statistics import area, shares, steps_to


class EmptyError(ValueError):
    """No attack has finished yet."""


def analyse(logs: Logs) -> Report:
    """All numbers of the report. Raises ValueError if no attack has finished."""
    cases = cases_of(logs)
    if not any(math.isfinite(a.forget) for case in cases for a in case.attacks):
        alone = any(case.controlled_by for case in cases) and not any(
            e.attacks for e in logs.entries
        )
        why = "all attacks are controls" if alone else "no relearning attack has finished yet"
        raise EmptyError(f"{logs.name}: nothing to report, {why}")
    labels = dict.fromkeys(case.entry.model for case in cases)
    grouped = [[case for case in cases if case.entry.model == label] for label in labels]
    grouped.sort(key=lambda some: ROLES.index(some[0].entry.role))  # stable
    models = tuple(_model(some, logs) for some in grouped)
    return Report(
        name=logs.name,
        retain=logs.retain,
        forget=logs.forget,
        others=logs.others,
        models=models,
        stages=_stages(logs.artifacts, [m.name for m in models]),
        shown_steps=pick_steps({step for m in models for step in m.curve}),
        unfinished=logs.unfinished,
        notes=notes(logs, models, cases),
        no_robustness=tuple(no_robustness(cases)),
        paired=_paired(logs.entries),
        origins=logs.origins,
        choices=tuple(choices(logs.artifacts)),
        spaces=spaces(cases, models, logs.forget.name),
    )


def cases_of(logs: Logs) -> list[Case]:
    """Every model and seed with its attacks, those of its references, and its robustness."""
    finished = {a.folder: a for a in logs.artifacts}
    listed = {entry.artifact: entry.model for entry in logs.entries}
    on: dict[str | None, dict[str, Logged]] = {}  # attacked folder -> attacks on it
    controls: dict[str, dict[str, Logged]] = {}
    for entry in logs.entries:
        done = {folder: finished[folder] for folder in entry.attacks if folder in finished}
        controls.setdefault(entry.artifact, {}).update(
            {folder: finished[folder] for folder in entry.controls if folder in finished}
        )
        on.setdefault(entry.artifact, {}).update(done)
    worst = {
        folder: strongest([a for one in found.values() for a in one.attacks], logs.forget)
        for folder, found in on.items()
        if found
    }
    bases, made = _bases(logs, finished), []
    for entry in logs.entries:
        attacks = tuple(on[entry.artifact].values())
        best = by_step((a for one in attacks for a in one.attacks), logs.forget, logs.retain)
        oracle, base = finished.get(entry.oracle or ""), _of(bases, entry.seed)
        ends = _forget(oracle, logs), _forget(base, logs)
        references = _references(entry, logs.entries)
        values = [
            robustness(worst.get(entry.artifact, math.nan), worst[u], worst[o], logs.forget)
            for u, o in references
            if u in worst and o in worst
        ]
        made.append(
            Case(
                entry=entry,
                attacked_by=attacks,
                controlled_by=tuple(controls[entry.artifact].values()),
                strongest=best,
                shares=shares({step: a.forget for step, a in best.items()}, *ends),
                own=finished.get(entry.artifact),
                oracle=oracle,
                base=base,
                family=listed.get(entry.unlearned or "") or logs.owners.get(entry.unlearned or ""),
                scaled=bool(values),
                robustness=next((v for v in values if math.isfinite(v)), math.nan),
            )
        )
    return made


def _bases(logs: Logs, finished: Mapping[str, Logged]) -> dict[int | None, Logged]:
    """The base before attacks, by seed.

    Of several models with that role it is the one that was unlearned; empty if these are several.
    """
    known = [e for e in logs.entries if e.role == "base" and e.artifact in finished]
    unlearned = [e for e in logs.entries if e.role == "unlearned" and e.artifact in finished]
    meant = {fingerprint for e in unlearned for fingerprint in finished[e.artifact].upstream}
    known = [e for e in known if e.artifact.rpartition("-")[2] in meant] or known
    return (
        {e.seed: finished[e.artifact] for e in known} if len({e.model for e in known}) <= 1 else {}
    )


def _forget(made: Logged | None, logs: Logs) -> float:
    """A model's forget score before attacks."""
    return math.nan if made is None else made.summary["eval"].get(logs.forget.name, math.nan)


def _of(bases: Mapping[int | None, Logged], seed: int | None) -> Logged | None:
    """The base of a seed, or the only one."""
    return bases.get(seed, next(iter(bases.values())) if len(bases) == 1 else None)


def _references(entry: Entry, entries: Sequence[Entry]) -> list[tuple[str | None, str | None]]:
    """The unlearned model and the oracle that a model is compared with.

    For the oracle itself: with every unlearned model that is compared with it.
    """
    if entry.role != "oracle":
        return [(entry.unlearned, entry.oracle)]
    held = [e.unlearned for e in entries if e.oracle == entry.artifact and e.unlearned is not None]
    return [(unlearned, entry.artifact) for unlearned in dict.fromkeys(held)]


def _paired(entries: Iterable[Entry]) -> bool:
    """Whether each distilled model is compared with the oracle of its own seed."""
    entries = tuple(entries)
    seeds = {entry.artifact: entry.seed for entry in entries}
    distilled = [e for e in entries if e.role == "distilled" and e.oracle in seeds]
    return all(seeds[e.oracle] == e.seed for e in distilled if e.oracle is not None)


def _model(cases: Sequence[Case], logs: Logs) -> Row:
    """A row of the report: all cases of one label."""
    cases = sorted(cases, key=lambda case: (case.entry.seed is None, case.entry.seed or 0))
    entry = cases[0].entry
    own = [case for case in cases if case.own is not None]
    attacked = [case for case in cases if case.attacked]
    curves = [case.strongest for case in attacked]
    last = max((step for curve in curves for step in curve), default=0)
    ends = [finals(case.attacks) for case in attacked]
    adversaries = sorted({key for found in ends for key in found}, key=adversary_order)

    def before(name: str) -> Spread:
        scores = [{**case.own.summary["eval"], **case.entry.compared} for case in own if case.own]
        return Spread(tuple(one.get(name, math.nan) for one in scores))

    return Row(
        name=entry.model,
        role=entry.role,
        alpha=entry.alpha,
        family=next((case.family for case in cases if case.family), None),
        seeds=tuple(case.entry.seed for case in attacked),
        made=tuple(case.entry.seed for case in own),
        retain=before(logs.retain.name),
        forget=before(logs.forget.name),
        others={metric.name: before(metric.name) for metric in logs.others},
        curve=_over_seeds([{step: a.forget for step, a in one.items()} for one in curves]),
        retained=_over_seeds([{step: a.retain for step, a in one.items()} for one in curves]),
        worst=Spread(tuple(strongest(case.attacks, logs.forget) for case in attacked)),
        robustness=Spread(tuple(case.robustness for case in attacked)),
        scaled=tuple(case.scaled for case in attacked),
        compute_steps=Spread(tuple(compute(case, "steps") for case in own)),
        compute_flops=Spread(tuple(compute(case, "flops") for case in own)),
        recovered=tuple(_recovered(own)),
        losses=_over_seeds([case.own.losses for case in own if case.own]),
        finals={k: Spread(tuple(f[k] for f in ends if k in f)) for k in adversaries},
        controls=_controls(attacked, logs),
        area=Spread(tuple(area(case.shares, last) for case in attacked)),
        half=Spread(tuple(steps_to(case.shares, HALF) for case in attacked)),
        attacks=card(attacked, _measures(logs), logs.retain, logs.forget.name),
    )


def _controls(cases: Sequence[Case], logs: Logs) -> dict[str, dict[int, Spread]]:
    """The curve of each control, over the same seeds as those of attacks."""
    names = dict.fromkeys(a.data for case in cases for a in case.controls)
    found = {name: [control(case, name, logs) for case in cases] for name in names}
    return {
        name: _over_seeds([{step: a.forget for step, a in curve.items()} for curve in of])
        for name, of in found.items()
    }


def control(case: Case, name: str, logs: Logs) -> dict[int, Evaluation]:
    """At each step a control's evaluation at its strongest learning rate, by its own metric."""
    own = [a for a in case.controls if a.data == name]
    if not own:
        return {}
    return by_step(own, _measures(logs)[own[0].metric], logs.retain)


def _measures(logs: Logs) -> dict[str, Measure]:
    return {measure.name: measure for measure in (logs.retain, logs.forget, *logs.others)}


def _over_seeds(found: Sequence[Mapping[int, float]]) -> dict[int, Spread]:
    """A spread for each step, nan for a seed that has none there."""
    steps = sorted({step for one in found for step in one})
    return {step: Spread(tuple(one.get(step, math.nan) for one in found)) for step in steps}


def adversary_order(adversary: Adversary) -> tuple[str, float]:
    """Sort key: by data, then by learning rate; an attack that does not train comes first."""
    data, rate = adversary
    return data, -math.inf if rate is None else rate


def _recovered(own: Iterable[Case]) -> Iterable[bool]:
    """For every distilled seed, whether it met the retain bar."""
    for case in own:
        if case.entry.role == "distilled" and case.own is not None:
            if case.own.summary["recovered"] is not None:
                yield case.own.summary["recovered"]


def compute(case: Case, unit: str) -> float:
    """Distillation in % of its oracle's training, by steps or FLOPs."""
    if case.own is None or case.oracle is None:
        return math.nan
    if not (case.entry.role == "distilled" or case.own is case.oracle):
        return math.nan
    spent, whole = case.own.summary[unit], case.oracle.summary[unit]
    return 100 * spent / whole if whole else math.nan


def _stages(artifacts: Iterable[Logged], names: Sequence[str]) -> tuple[Stage, ...]:
    """Ordered by stage as they are made, then by model as in the tables."""
    groups: dict[tuple[str, str], list[Logged]] = {}
    for a in artifacts:
        groups.setdefault((a.stage, a.model), []).append(a)
    stages = list(dict.fromkeys(stage for stage, _ in groups))

    def order(key: tuple[str, str]) -> tuple[int, int, str]:
        stage, model = key
        return stages.index(stage), names.index(model) if model in names else -1, model

    def spread(found: list[Logged], unit: str) -> Spread:
        return Spread(tuple(a.summary[unit] for a in found))

    return tuple(
        Stage(
            stage=key[0],
            model=key[1],
            seeds=tuple(sorted({a.seed for a in groups[key] if a.seed is not None})),
            steps=spread(groups[key], "steps"),
            tokens=spread(groups[key], "tokens"),
            flops=spread(groups[key], "flops"),
        )
        for key in sorted(groups, key=order)
    )

"""From logs to the numbers of a report: attacks, robustness and compute of every model."""

import math
from collections.abc import Mapping, Sequence

from undo_jax.report.cards import HALF, card
from undo_jax.report.cases import Case, cases_of
from undo_jax.report.notes import no_robustness, notes
from undo_jax.report.numbers import (
    ModelRow,
    Report,
    adversary_order,
    finals,
    pick_steps,
    worst_case_of,
)
from undo_jax.report.plugin_scores import list_plugin_scores
from undo_jax.report.records import ROLES, Entry, Logs
from undo_jax.report.statistics import Spread, area, steps_to
from undo_jax.report.worst_case import shown_bounds


class EmptyError(ValueError):
    """Raised while no attack has finished yet."""


def analyse(logs: Logs) -> Report:
    """Returns all numbers of the report. Raises EmptyError if no attack has finished."""
    cases = cases_of(logs)
    if not any(math.isfinite(a.forget) for case in cases for a in case.attacks):
        only_controls = any(case.controlled_by for case in cases) and not any(
            e.attacks for e in logs.entries
        )
        reason = (
            "all attacks are controls" if only_controls else "no relearning attack has finished yet"
        )
        raise EmptyError(f"{logs.name}: nothing to report, {reason}")
    by_label: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: ROLES.index(case.entry.role)):  # stable
        by_label.setdefault(case.entry.model, []).append(case)
    models = tuple(_model_row(model_cases, logs) for model_cases in by_label.values())
    return Report(
        name=logs.name,
        retain=logs.retain,
        forget=logs.forget,
        other_metrics=logs.other_metrics,
        models=models,
        shown_steps=pick_steps({step for m in models for step in m.curve}),
        unfinished=logs.unfinished,
        notes=notes(logs, models, cases),
        no_robustness=tuple(no_robustness(cases)),
        logs=logs,
        cases=tuple(cases),
        paired=_paired(logs.entries),
        plugin_scores=list_plugin_scores(logs),
    )


def _paired(entries: Sequence[Entry]) -> bool:
    """Returns whether each distilled model is compared with the oracle of its own seed."""
    seeds = {entry.artifact: entry.seed for entry in entries}
    return all(
        seeds[e.oracle] == e.seed
        for e in entries
        if e.role == "distilled" and e.oracle is not None and e.oracle in seeds
    )


def _model_row(cases: Sequence[Case], logs: Logs) -> ModelRow:
    """Returns a row of the report: all cases of one label, by seed."""
    cases = sorted(cases, key=lambda case: (case.entry.seed is None, case.entry.seed or 0))
    entry = cases[0].entry
    finished = [(case, case.artifact) for case in cases if case.artifact is not None]
    attacked = [case for case in cases if case.attacked]
    curves = [case.strongest for case in attacked]
    last = max((step for curve in curves for step in curve), default=0)
    unbounded = [case.curves[0.0] for case in attacked]
    final_scores = [finals(case.attacks) for case in attacked]
    adversaries = sorted({key for scores in final_scores for key in scores}, key=adversary_order)
    scores = [{**artifact.summary["eval"], **case.entry.compared} for case, artifact in finished]

    def before(name: str) -> Spread:
        return Spread(tuple(evaluation.get(name, math.nan) for evaluation in scores))

    return ModelRow(
        name=entry.model,
        role=entry.role,
        alpha=entry.alpha,
        family=next((case.family for case in cases if case.family), None),
        seeds=tuple(case.entry.seed for case in attacked),
        finished_seeds=tuple(case.entry.seed for case, _ in finished),
        retain=before(logs.retain.name),
        forget=before(logs.forget.name),
        other_scores={metric.name: before(metric.name) for metric in logs.other_metrics},
        curve=_over_seeds([{s: a.forget for s, a in curve.items()} for curve in curves]),
        retained=_over_seeds([{s: a.retain for s, a in curve.items()} for curve in curves]),
        unbounded=_over_seeds([{s: a.forget for s, a in c.items()} for c in unbounded]),
        unbounded_retained=_over_seeds([{s: a.retain for s, a in c.items()} for c in unbounded]),
        worst_cases={
            bound: worst_case_of([case.worst(bound) for case in attacked])
            for bound in shown_bounds(logs.min_retain)
        },
        min_retain=logs.min_retain,
        strongest=tuple(case.worst(logs.min_retain) for case in attacked),
        unqualified=tuple(case.entry.seed for case in attacked if case.unqualified),
        robustness=Spread(tuple(case.robustness for case in attacked)),
        scaled=tuple(case.scaled for case in attacked),
        compute_steps=Spread(tuple(case.compute("steps") for case, _ in finished)),
        compute_flops=Spread(tuple(case.compute("flops") for case, _ in finished)),
        recovered=tuple(
            artifact.summary["recovered"]
            for case, artifact in finished
            if case.entry.role == "distilled" and artifact.summary["recovered"] is not None
        ),
        losses=_over_seeds([artifact.losses for _, artifact in finished]),
        finals={k: worst_case_of([f[k] for f in final_scores if k in f]) for k in adversaries},
        controls=_controls(attacked),
        area=Spread(tuple(area(case.shares, last) for case in attacked)),
        half=Spread(tuple(steps_to(case.shares, HALF) for case in attacked)),
        attacks=card(attacked, logs),
    )


def _controls(cases: Sequence[Case]) -> dict[str, dict[int, Spread]]:
    """Returns the curve of each control, over the same seeds as those of attacks."""
    names = dict.fromkeys(a.data for case in cases for a in case.controls)
    curves = {name: [case.control(name) for case in cases] for name in names}
    return {
        name: _over_seeds([{step: a.forget for step, a in curve.items()} for curve in of_seeds])
        for name, of_seeds in curves.items()
    }


def _over_seeds(curves: Sequence[Mapping[int, float]]) -> dict[int, Spread]:
    """Returns a spread for each step, nan for a seed that has no value there."""
    steps = sorted({step for curve in curves for step in curve})
    return {step: Spread(tuple(c.get(step, math.nan) for c in curves)) for step in steps}

"""The numbers as rows, one for each model and seed: pandas.DataFrame takes them as they are."""

import math
from typing import NamedTuple

from undo_jax.report.analysis import cases_of
from undo_jax.report.numbers import by_step, strongest
from undo_jax.report.records import Logs


class Result(NamedTuple):
    """A model with one seed; nan where it is not finished, not attacked or undefined."""

    model: str
    seed: int | None
    role: str
    alpha: float | None  # of the noise that its student began with
    retain: float  # before attacks, as `worst` in the unit of its metric
    forget: float
    worst: float  # forget score of the strongest attack at any step
    robustness: float  # in %: 0 is the unlearned model, 100 the oracle


class Point(NamedTuple):
    """A model with one seed after `step` steps of relearning."""

    model: str
    seed: int | None
    step: int
    forget: float  # of the strongest attack at this step
    retain: float  # under that attack


def results(logs: Logs) -> list[Result]:
    """Scores and robustness of every model and seed, in the order of the experiment."""
    rows = []
    for case in cases_of(logs):
        entry, scores = case.entry, case.own.summary["eval"] if case.own else {}
        retain, forget = (scores.get(m.name, math.nan) for m in (logs.retain, logs.forget))
        worst = strongest(case.attacks, logs.forget)
        own = entry.model, entry.seed, entry.role, entry.alpha
        robustness = case.robustness + 0.0  # no minus before a zero
        rows.append(Result(*own, retain, forget, worst, robustness))
    return rows


def curves(logs: Logs) -> list[Point]:
    """Relearning curves of every attacked model and seed, one after the other."""
    return [
        Point(case.entry.model, case.entry.seed, step, attack.forget, attack.retain)
        for case in cases_of(logs)
        for step, attack in by_step(case.attacks, logs.forget, logs.retain).items()
    ]

"""The worst cases of a report as a file of numbers."""

from typing import NamedTuple

from undo_jax.report.numbers import Report
from undo_jax.report.worst_case import BOUNDS


class WorstCaseRow(NamedTuple):
    """The strongest attack on a model with one seed among those that keep so much of retain."""

    model: str
    seed: int | None
    min_retain: float  # 0: no bound
    forget: float
    retain: float
    attack: str  # "no attack" where none counts, or none recovers anything
    learning_rate: float | None  # None: it does not train
    step: int


def worst_case_rows(report: Report) -> list[WorstCaseRow]:
    """Returns a row for each attacked model, seed and bound; none where an attack has no score."""
    bounds = sorted({*BOUNDS, report.min_retain}, reverse=True)
    return [
        WorstCaseRow(
            case.entry.model, case.entry.seed, bound, worst.forget, worst.retain, worst.data,
            worst.learning_rate, worst.step,
        )
        for case in report.cases
        if case.attacked
        for bound in bounds
        if (worst := case.worst(bound))
    ]  # fmt: skip

"""The worst cases of a report as a table, and as a file of numbers."""

from typing import NamedTuple

from undo_jax.report.numbers import Report
from undo_jax.report.records import Measure
from undo_jax.report.tables import Grid, pair_cell, sentence
from undo_jax.report.worst_case import shown_bounds


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
    qualified: bool  # whether any point of any attack counts


def worst_case_rows(report: Report) -> list[WorstCaseRow]:
    """Returns a row for each attacked model, seed and bound; none where an attack has no score."""
    return [
        WorstCaseRow(
            case.entry.model, case.entry.seed, bound, worst.forget, worst.retain, worst.data,
            worst.learning_rate, worst.step, case.qualifies(case.attacks, bound),
        )
        for case in report.cases
        if case.attacked
        for bound in shown_bounds(report.min_retain)
        if (worst := case.worst(bound))
    ]  # fmt: skip


def worst_case_grid(report: Report) -> Grid:
    """Returns a row per attacked model: its worst case by the share of retain that must be kept."""
    bounds = shown_bounds(report.min_retain)
    header = ["model", "before", *(_bound_name(bound, report.retain) for bound in bounds)]
    rows = [
        [m.name, pair_cell(m.forget, m.retain), *(pair_cell(*m.worst_cases[b]) for b in bounds)]
        for m in report.attacked
    ]
    return Grid(header, rows)


def worst_case_legend(report: Report) -> str:
    """Returns how to read the table of worst cases."""
    over = ", means over seeds" if report.several_seeds else ""
    return (
        f"{sentence(report.forget.axis)} of the strongest attack at any step and learning rate, "
        f"and in brackets {report.retain.axis} under it{over}. Before: without an attack. Then: of "
        "the attacks that leave the model this share of its retain score, chosen for each "
        "seed; the score before where no such attack is stronger. Unbounded: of all attacks, "
        "whatever they leave. The file worst_cases.csv has the attack, learning rate and step "
        "behind each score, seed by seed."
    )


def _bound_name(bound: float, retain: Measure) -> str:
    if bound == 0:
        return "unbounded"
    if retain.higher_is_better:
        return f"retain ≥ {100 * bound:g} %"
    return f"retain loss ≤ {100 * (2 - bound):g} %"

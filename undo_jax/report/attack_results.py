"""Each attack on each model and seed, as rows of a file of numbers."""

import math
from typing import NamedTuple

from undo_jax.report.numbers import Report


class AttackResult(NamedTuple):
    """A row of robustness.csv: an attack on a model with one seed; empty where undefined."""

    model: str
    seed: int | None
    min_retain: float  # share of the retain score that must be left for a point to count; 0: any
    attack: str
    control: bool
    metric: str
    trials: int
    qualified: bool  # whether any point counts; if none does, worst and retain are those before it
    worst: float | None
    retain: float | None
    steps_to_half: float | None  # infinite where it is not reached, as are examples
    examples_to_half: float | None
    area: float | None


def attack_results(report: Report) -> list[AttackResult]:
    """Returns a row for each attack on each model and seed."""
    return [
        AttackResult(
            m.name, seed, report.min_retain, a.attack, a.control, a.measure.name, a.trials[i],
            a.qualified[i],
            *(
                None if math.isnan(spread.values[i]) else spread.values[i]
                for spread in (a.worst, a.retain, a.steps, a.examples, a.area)
            ),
        )
        for m in report.attacked
        for a in m.attacks
        for i, seed in enumerate(m.seeds)
    ]  # fmt: skip

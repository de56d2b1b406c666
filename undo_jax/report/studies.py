"""An experiment's numbers by model and seed, as the paper's figures and claims need them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from undo_jax.report import statistics
from undo_jax.report.analysis import analyse, cases_of, compute
from undo_jax.report.notes import Case
from undo_jax.report.numbers import Report, Spread, by_step
from undo_jax.report.records import Logs, Measure

Seed = int | None
Curve = Mapping[int, float]  # a score by step


class Point(NamedTuple):
    """A number that a figure shows: a row of its CSV file."""

    panel: str
    setting: str
    model: str
    seed: Seed
    x: float
    y: float


@dataclass(frozen=True)
class Study:
    """One experiment of a figure."""

    setting: str
    logs: Logs

    @functools.cached_property
    def report(self) -> Report:
        return analyse(self.logs)

    @functools.cached_property
    def _cases(self) -> dict[str, dict[Seed, Case]]:
        found: dict[str, dict[Seed, Case]] = {}
        for case in cases_of(self.logs):
            found.setdefault(case.entry.model, {})[case.entry.seed] = case
        return found

    @property
    def forget(self) -> Measure:
        return self.logs.forget

    @property
    def models(self) -> list[str]:
        """All models, in the order of the experiment."""
        return list(self._cases)

    def cases(self, model: str) -> dict[Seed, Case]:
        """A model's seeds. Raises ValueError for a model that the experiment has not."""
        if model not in self._cases:
            raise ValueError(
                f"{self.logs.name} has no model {model!r}: run the shipped experiment again"
            )
        return self._cases[model]

    def before(self, model: str, measure: Measure) -> dict[Seed, float]:
        """A model's score before any attack, by seed."""
        return {
            seed: case.own.summary["eval"].get(measure.name, math.nan)
            for seed, case in self.cases(model).items()
            if case.own is not None
        }

    def losses(self, model: str) -> dict[Seed, Curve]:
        """Training losses of a distillation, by seed."""
        return {s: case.own.losses for s, case in self.cases(model).items() if case.own}

    def relearned(self, model: str) -> dict[Seed, Curve]:
        """Forget score of the strongest attack at each step, by seed."""
        return self._by_step(model, None, "forget")

    def retained(self, model: str) -> dict[Seed, Curve]:
        """Retain score under that attack, by seed."""
        return self._by_step(model, None, "retain")

    def control(self, model: str, name: str) -> dict[Seed, Curve]:
        """Score of a control by its own metric, by seed; empty where there is no such control."""
        return self._by_step(model, name, "forget")

    def _by_step(self, model: str, control: str | None, score: str) -> dict[Seed, Curve]:
        measures = {m.name: m for m in (self.logs.retain, self.logs.forget, *self.logs.others)}
        found = {}
        for seed, case in self.cases(model).items():
            own = case.attacks if control is None else case.controls
            own = [a for a in own if control in (None, a.data)]
            if own:
                metric = measures[own[0].metric] if control else self.logs.forget
                best = by_step(own, metric, self.logs.retain)
                found[seed] = {step: getattr(a, score) for step, a in best.items()}
        return found

    def robustness(self, model: str) -> dict[Seed, float]:
        """In %: 0 is its unlearned ancestor, 100 the oracle, by the strongest attack ever."""
        return {seed: case.robustness for seed, case in self.cases(model).items()}

    def compute(self, model: str, unit: str) -> dict[Seed, float]:
        """Distillation in % of the oracle's training, by "steps" or "flops"."""
        return {seed: compute(case, unit) for seed, case in self.cases(model).items()}

    def shares(self, model: str, base: str = "base", oracle: str = "oracle") -> dict[Seed, Curve]:
        """Relearned shares of the base's knowledge: 0 as the oracle before attacks, 1 as the base.

        For each seed, by relearning step.
        """
        nothing, everything = (self.before(one, self.forget) for one in (oracle, base))
        return {
            seed: statistics.shares(curve, _of(nothing, seed), _of(everything, seed))
            for seed, curve in self.relearned(model).items()
        }

    def areas(self, model: str) -> dict[Seed, float]:
        """Normalised areas under the relearning curve: the mean of those shares over its steps."""
        return {seed: statistics.area(curve) for seed, curve in self.shares(model).items()}

    def control_areas(self, model: str, name: str) -> dict[Seed, float]:
        """Mean score of a control over its steps, by seed."""
        return {s: statistics.area(curve) for s, curve in self.control(model, name).items()}


def _of(found: Mapping[Seed, float], seed: Seed) -> float:
    """A seed's value, or that of the only model for all seeds."""
    return found.get(seed, next(iter(found.values())) if len(found) == 1 else math.nan)


def difference(one: Mapping[Seed, float], other: Mapping[Seed, float]) -> Spread:
    """one − other for each seed that both have."""
    return Spread(tuple(one[seed] - other[seed] for seed in one if seed in other))


def lines(panel: str, setting: str, model: str, curves: Mapping[Seed, Curve]) -> Iterable[Point]:
    """Points of curves, one line per seed."""
    for seed, curve in curves.items():
        for step, score in curve.items():
            yield Point(panel, setting, model, seed, step, score)

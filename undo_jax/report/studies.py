"""An experiment's numbers by model and seed, as the paper's figures and claims need them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from undo_jax.report import statistics
from undo_jax.report.analysis import analyse
from undo_jax.report.cases import Case, cases_of
from undo_jax.report.numbers import Report
from undo_jax.report.records import Evaluation, Logs, Measure
from undo_jax.report.statistics import Seed

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
            seed: case.artifact.summary["eval"].get(measure.name, math.nan)
            for seed, case in self.cases(model).items()
            if case.artifact is not None
        }

    def losses(self, model: str) -> dict[Seed, Curve]:
        """Training losses of a distillation, by seed."""
        return {s: case.artifact.losses for s, case in self.cases(model).items() if case.artifact}

    def relearned(self, model: str) -> dict[Seed, Curve]:
        """Forget score of the strongest attack at each step, by seed."""
        return {
            seed: {step: a.forget for step, a in case.strongest.items()}
            for seed, case in self._attacked(model).items()
        }

    def retained(self, model: str) -> dict[Seed, Curve]:
        """Retain score under that attack, by seed."""
        return {
            seed: {step: a.retain for step, a in case.strongest.items()}
            for seed, case in self._attacked(model).items()
        }

    def kept(self, one: str, other: str) -> dict[Seed, float]:
        """How much better the retain score of one model is before its attack than the other's."""
        scores = [
            {seed: curve[min(curve)] if curve else math.nan for seed, curve in found.items()}
            for found in map(self.retained, (one, other))
        ]
        better = 1 if self.logs.retain.higher_is_better else -1
        return {seed: better * more for seed, more in difference(*scores).items()}

    def shares(self, model: str) -> dict[Seed, Curve]:
        """Relearned shares by step, by seed: 0 as the oracle before attacks, 1 as the base."""
        return {seed: case.shares for seed, case in self._attacked(model).items()}

    def areas(self, model: str) -> dict[Seed, float]:
        """Normalised areas under the relearning curve: the mean of those shares over its steps."""
        return {seed: statistics.area(c, self._last) for seed, c in self.shares(model).items()}

    def control(self, model: str, name: str) -> dict[Seed, Curve]:
        """Score of a control by its own metric, by seed; none where there is no such control.

        A seed whose training diverged has an empty curve.
        """
        return {
            seed: {step: a.forget for step, a in curve.items()}
            for seed, curve in self._controlled(model, name).items()
        }

    def control_retained(self, model: str, name: str) -> dict[Seed, Curve]:
        """Retain score under that control, by seed."""
        return {
            seed: {step: a.retain for step, a in curve.items()}
            for seed, curve in self._controlled(model, name).items()
        }

    def _controlled(self, model: str, name: str) -> dict[Seed, dict[int, Evaluation]]:
        return {
            seed: case.control(name, self.logs)
            for seed, case in self.cases(model).items()
            if any(a.data == name for a in case.controls)
        }

    def control_areas(self, model: str, name: str) -> dict[Seed, float]:
        """Mean score of a control over its steps, by seed."""
        curves = [curve for one in self.models for curve in self.control(one, name).values()]
        last = max((step for curve in curves for step in curve), default=0)
        return {s: statistics.area(curve, last) for s, curve in self.control(model, name).items()}

    @functools.cached_property
    def _last(self) -> int:
        """The last step of attacks."""
        cases = [case for seeds in self._cases.values() for case in seeds.values()]
        return max((step for case in cases for step in case.strongest), default=0)

    def _attacked(self, model: str) -> dict[Seed, Case]:
        return {seed: case for seed, case in self.cases(model).items() if case.attacked}

    def robustness(self, model: str) -> dict[Seed, float]:
        """In %: 0 is its unlearned ancestor, 100 the oracle, by the strongest attack ever."""
        return {seed: case.robustness for seed, case in self.cases(model).items()}

    def compute(self, model: str, unit: str) -> dict[Seed, float]:
        """Distillation in % of the oracle's training, by "steps" or "flops"."""
        return {seed: case.compute(unit) for seed, case in self.cases(model).items()}


def difference(one: Mapping[Seed, float], other: Mapping[Seed, float]) -> dict[Seed, float]:
    """one − other, by `statistics.pairs`."""
    return {seed: its - others for seed, (its, others) in statistics.pairs(one, other).items()}


def lines(panel: str, setting: str, model: str, curves: Mapping[Seed, Curve]) -> Iterable[Point]:
    """Points of curves, one line per seed."""
    for seed, curve in curves.items():
        for step, score in curve.items():
            yield Point(panel, setting, model, seed, step, score)

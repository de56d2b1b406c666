"""An experiment's numbers by model and seed, as the paper's figures and claims need them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from undo_jax.report import statistics
from undo_jax.report.analysis import analyse
from undo_jax.report.cases import Case, cases_of
from undo_jax.report.numbers import Report
from undo_jax.report.records import Evaluation, Logs, Measure
from undo_jax.report.statistics import Seed

Curve = Mapping[int, float]  # a score by step


class PaperPoint(NamedTuple):
    """A number of a figure of the paper: a row of its CSV file."""

    panel: str
    setting: str
    model: str
    seed: Seed
    x: float
    y: float


@dataclass(frozen=True)
class Study:
    """One experiment of a figure. Methods return numbers of a model by seed."""

    setting: str
    logs: Logs

    @functools.cached_property
    def report(self) -> Report:
        return analyse(self.logs)

    @functools.cached_property
    def _cases(self) -> dict[str, dict[Seed, Case]]:
        cases: dict[str, dict[Seed, Case]] = {}
        for case in cases_of(self.logs):
            cases.setdefault(case.entry.model, {})[case.entry.seed] = case
        return cases

    @property
    def forget(self) -> Measure:
        return self.logs.forget

    @property
    def models(self) -> list[str]:
        """The names of all models, in the order of the experiment."""
        return list(self._cases)

    def cases(self, model: str) -> dict[Seed, Case]:
        """Returns a model's cases by seed. Raises ValueError if the experiment lacks the model."""
        if model not in self._cases:
            raise ValueError(
                f"{self.logs.name} has no model {model!r}: run the shipped experiment again"
            )
        return self._cases[model]

    def before(self, model: str, measure: Measure) -> dict[Seed, float]:
        """Returns a score before any attack."""
        return {
            seed: case.artifact.summary["eval"].get(measure.name, math.nan)
            for seed, case in self.cases(model).items()
            if case.artifact is not None
        }

    def losses(self, model: str) -> dict[Seed, Curve]:
        """Returns the training losses of a distillation."""
        return {s: case.artifact.losses for s, case in self.cases(model).items() if case.artifact}

    def relearned(self, model: str) -> dict[Seed, Curve]:
        """Returns the forget score of the worst case at each step, see `worst_case`."""
        return _scores("forget", {s: c.strongest for s, c in self._attacked(model).items()})

    def retained(self, model: str) -> dict[Seed, Curve]:
        """Returns the retain score at that point."""
        return _scores("retain", {s: c.strongest for s, c in self._attacked(model).items()})

    def retain_gap(self, model: str, reference: str) -> dict[Seed, float]:
        """Returns how much better a model's retain score is than a reference's before attacks."""
        scores = [
            {seed: curve[min(curve)] if curve else math.nan for seed, curve in curves.items()}
            for curves in map(self.retained, (model, reference))
        ]
        sign = 1 if self.logs.retain.higher_is_better else -1
        return {seed: sign * gap for seed, gap in difference(*scores).items()}

    def shares(self, model: str) -> dict[Seed, Curve]:
        """Returns relearned shares by step: 0 is the oracle before attacks, 1 the base."""
        return {seed: case.shares for seed, case in self._attacked(model).items()}

    def areas(self, model: str) -> dict[Seed, float]:
        """Returns areas under the relearning curve: the mean of those shares over its steps."""
        return {seed: statistics.area(c, self._last) for seed, c in self.shares(model).items()}

    def control(self, model: str, name: str) -> dict[Seed, Curve]:
        """Returns the score of a control by its own metric; none without such a control.

        It is the worst case over the control's own data alone, and over those among retain rows
        (`permuted` and `permuted-0.5`). A seed whose training diverged has an empty curve.
        """
        return _scores("forget", self._controlled(model, name))

    def control_retained(self, model: str, name: str) -> dict[Seed, Curve]:
        """Returns the retain score under that control."""
        return _scores("retain", self._controlled(model, name))

    def _controlled(self, model: str, name: str) -> dict[Seed, dict[int, Evaluation]]:
        names = re.compile(rf"{re.escape(name)}(-0\.\d+)?")  # alone, or among retain rows
        controls: dict[Seed, dict[int, Evaluation]] = {}
        for seed, case in self.cases(model).items():
            if attacks := [a for a in case.controls if names.fullmatch(a.data)]:
                controls[seed] = case.worst_by_step(attacks, self.logs.measures[attacks[0].metric])
        return controls

    def control_areas(self, model: str, name: str) -> dict[Seed, float]:
        """Returns the mean score of a control over its steps."""
        curves = [curve for m in self.models for curve in self.control(m, name).values()]
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
        """Returns robustness in %: 0 is the unlearned ancestor's, 100 the oracle's."""
        return {seed: case.robustness for seed, case in self.cases(model).items()}

    def compute(self, model: str, unit: str) -> dict[Seed, float]:
        """Returns distillation in % of the oracle's training, by "steps" or "flops"."""
        return {seed: case.compute(unit) for seed, case in self.cases(model).items()}


def _scores(name: str, curves: Mapping[Seed, Mapping[int, Evaluation]]) -> dict[Seed, Curve]:
    return {
        seed: {step: getattr(evaluation, name) for step, evaluation in curve.items()}
        for seed, curve in curves.items()
    }


def difference(values: Mapping[Seed, float], subtrahend: Mapping[Seed, float]) -> dict[Seed, float]:
    """Returns values − subtrahend for the seeds of `statistics.pairs`."""
    pairs = statistics.pairs(values, subtrahend)
    return {seed: first - second for seed, (first, second) in pairs.items()}


def curve_points(
    panel: str, setting: str, line: str, curves: Mapping[Seed, Curve]
) -> Iterator[PaperPoint]:
    """Yields the points of a line's curves."""
    for seed, curve in curves.items():
        for step, score in curve.items():
            yield PaperPoint(panel, setting, line, seed, step, score)

"""Two models, or two experiments, beside each other, with differences seed by seed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from undo_jax.report.numbers import Spread, pick_steps
from undo_jax.report.statistics import Seed, student
from undo_jax.report.studies import Curve, Study, difference
from undo_jax.report.tables import NONE, Grid, cell, percent, score

LEGEND = (
    "retain: {retain}; forget: {forget}, at step n by the strongest attack; mean [lowest, highest] "
    "over seeds; the difference is B − A for each seed that both have: its mean and Student's 95 % "
    "interval, and over how many seeds"
)

PERCENT = ("robustness %", "compute % steps", "compute % FLOPs")


@dataclass(frozen=True)
class Side:
    """An experiment or, with `model`, one of its models; with a seed, that seed alone."""

    study: Study
    model: str = ""
    seed: Seed = None

    @property
    def name(self) -> str:
        """The name in the table."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.model or self.study.logs.name}{seed}"


def grid(a: Side, b: Side) -> Grid:
    """Returns the table of a comparison. Raises ValueError for sides with nothing in common."""
    for measure in ("retain", "forget"):
        left, right = (getattr(side.study.logs, measure) for side in (a, b))
        if (left.name, left.axis) != (right.name, right.axis):
            raise ValueError(
                f"A ({a.name}) is measured by {left.axis}, B ({b.name}) by {right.axis}: these "
                "cannot be compared"
            )
    if bool(a.model) != bool(b.model):
        raise ValueError(
            f"{a.name} and {b.name}: one is a model, the other an experiment; give two "
            "models (WORKDIR:MODEL) or two experiments"
        )
    header = ["", f"A: {a.name}", f"B: {b.name}", "B − A", "seeds"]
    if a.model:
        return Grid(header, list(_rows(a, b)))
    both = [model for model in a.study.models if model in b.study.models]
    if not both:
        raise ValueError(f"{a.name} and {b.name} have no model of the same name")
    rows = [
        [f"{model}: {name}", *cells]
        for model in both
        for name, *cells in _rows(replace(a, model=model), replace(b, model=model), short=True)
    ]
    return Grid(header, rows)


def legend(side: Side) -> str:
    """Returns how to read the table."""
    logs = side.study.logs
    return LEGEND.format(retain=logs.retain.axis, forget=logs.forget.axis)


def unmatched(a: Side, b: Side) -> list[str]:
    """Returns a line for each of two experiments about the models that only it has."""
    lines = []
    for letter, side, other in (("A", a, b), ("B", b, a)):
        models = [model for model in side.study.models if model not in other.study.models]
        if models and not side.model:
            lines.append(f"only in {letter}: {', '.join(models)}")
    return lines


def _rows(a: Side, b: Side, short: bool = False) -> Iterator[list[str]]:
    """Yields a row for each quantity that both have and that is defined for one of them."""
    curves = [list(side.study.relearned(side.model).values()) for side in (a, b)]
    of_a, of_b = ({step for curve in side for step in curve} for side in curves)
    shown = pick_steps(of_a & of_b) if of_a & of_b else ()
    b_quantities = _quantities(b, shown, short)
    for name, values in _quantities(a, shown, short).items():
        form = percent if name in PERCENT else score
        if name in b_quantities:
            both = values, b_quantities[name]
            cells = [cell(Spread(tuple(side.values())), form) for side in both]
            differences = Spread(Spread(tuple(difference(*both[::-1]).values())).finite)
            if cells != [NONE, NONE]:
                yield [name, *cells, _interval(differences, form), str(len(differences.values))]


def _interval(differences: Spread, form: Callable[[float], str]) -> str:
    """Returns a mean and Student's interval with signs."""
    numbers = [differences.mean, *student(differences)]
    mean, *ends = (f"{'' if form(v).startswith('-') else '+'}{form(v)}" for v in numbers)
    if len(differences.values) > 1:
        return f"{mean} [{', '.join(ends)}]"
    return mean if differences.values else NONE


def _quantities(side: Side, shown: tuple[int, ...], short: bool) -> dict[str, Mapping[Seed, float]]:
    """Returns what a report has of a model; `short`: its headline alone."""
    study, model, logs = side.study, side.model, side.study.logs
    metrics = {"retain": logs.retain, "forget": logs.forget}
    metrics |= {} if short else {measure.axis: measure for measure in logs.other_metrics}
    values = {f"{name} before": study.before(model, m) for name, m in metrics.items()}
    for step in shown[-1:] if short else shown:
        values[f"forget at step {step}"] = _at(study.relearned(model), step)
    if not short:
        for step in shown[-1:]:
            values[f"retain at step {step}"] = _at(study.retained(model), step)
        values["area under the curve"] = study.areas(model)
    values["robustness %"] = study.robustness(model)
    if not short:
        values["compute % steps"] = study.compute(model, "steps")
        values["compute % FLOPs"] = study.compute(model, "flops")
    if side.seed is None:
        return values
    return {
        name: {s: v for s, v in by_seed.items() if s == side.seed}
        for name, by_seed in values.items()
    }


def _at(curves: Mapping[Seed, Curve], step: int) -> dict[Seed, float]:
    return {seed: curve.get(step, math.nan) for seed, curve in curves.items()}

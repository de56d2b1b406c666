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


@dataclass(frozen=True)
class Quantity:
    """A number of a model, by seed."""

    name: str
    values: Mapping[Seed, float]
    format: Callable[[float], str] = score


def grid(a: Side, b: Side) -> Grid:
    """Returns the table of a comparison. Raises ValueError for sides with nothing in common."""
    _check(a, b)
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


def _check(a: Side, b: Side) -> None:
    """Raises ValueError for headlines that measure different things."""
    a_logs, b_logs = a.study.logs, b.study.logs
    for left, right in ((a_logs.retain, b_logs.retain), (a_logs.forget, b_logs.forget)):
        if (left.name, left.axis) != (right.name, right.axis):
            raise ValueError(
                f"A ({a.name}) is measured by {left.axis}, B ({b.name}) by {right.axis}: these "
                "cannot be compared"
            )


def _rows(a: Side, b: Side, short: bool = False) -> Iterator[list[str]]:
    """Yields a row for each quantity that both have and that is defined for one of them."""
    steps = _steps(a) & _steps(b)
    shown = pick_steps(steps) if steps else ()
    b_quantities = {quantity.name: quantity for quantity in _quantities(b, shown, short)}
    for quantity in _quantities(a, shown, short):
        if quantity.name in b_quantities:
            row = _row(quantity, b_quantities[quantity.name])
            if row[1:3] != [NONE, NONE]:
                yield row


def _row(a: Quantity, b: Quantity) -> list[str]:
    differences = Spread(Spread(tuple(difference(b.values, a.values).values())).finite)
    text = NONE
    if differences.values:
        low, high = student(differences)
        text = _signed(differences.mean, a)
        if not math.isnan(low):
            text += f" [{_signed(low, a)}, {_signed(high, a)}]"
    sides = (cell(Spread(tuple(q.values.values())), q.format) for q in (a, b))
    return [a.name, *sides, text, str(len(differences.values))]


def _signed(value: float, quantity: Quantity) -> str:
    text = quantity.format(value)
    return text if text.startswith("-") else f"+{text}"


def _quantities(side: Side, shown: tuple[int, ...], short: bool) -> Iterator[Quantity]:
    """Yields what a report has of a model; `short`: its headline alone."""
    for quantity in _all_quantities(side, shown, short):
        values = quantity.values
        if side.seed is not None:
            values = {seed: v for seed, v in values.items() if seed == side.seed}
        yield replace(quantity, values=values)


def _all_quantities(side: Side, shown: tuple[int, ...], short: bool) -> Iterator[Quantity]:
    """Yields these quantities over all seeds."""
    study, model = side.study, side.model
    logs, relearned = study.logs, study.relearned(model)
    metrics = {"retain": logs.retain, "forget": logs.forget}
    metrics |= {} if short else {measure.axis: measure for measure in logs.other_metrics}
    for name, measure in metrics.items():
        yield Quantity(f"{name} before", study.before(model, measure))
    for step in shown[-1:] if short else shown:
        yield Quantity(f"forget at step {step}", _at(relearned, step))
    if not short:
        for step in shown[-1:]:
            yield Quantity(f"retain at step {step}", _at(study.retained(model), step))
        yield Quantity("area under the curve", study.areas(model))
    yield Quantity("robustness %", study.robustness(model), percent)
    if not short:
        for unit, name in (("steps", "steps"), ("flops", "FLOPs")):
            yield Quantity(f"compute % {name}", study.compute(model, unit), percent)


def _steps(side: Side) -> set[int]:
    return {int(step) for curve in side.study.relearned(side.model).values() for step in curve}


def _at(curves: Mapping[Seed, Curve], step: int) -> dict[Seed, float]:
    return {seed: curve.get(step, math.nan) for seed, curve in curves.items()}

"""Two models, or two experiments, beside each other, with differences seed by seed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from undo_jax.report.numbers import Spread, pick_steps
from undo_jax.report.statistics import student
from undo_jax.report.studies import Curve, Seed, Study, difference
from undo_jax.report.tables import NONE, Grid, cell, percent, score

LEGEND = (
    "retain: {retain}; forget: {forget}, at step n by the strongest attack; mean [lowest, highest] "
    "over seeds; the difference is B − A for each seed that both have: its mean and Student's 95 % "
    "interval, and over how many seeds"
)
Form = Callable[[float], str]


@dataclass(frozen=True)
class Side:
    """An experiment, or a model of it; with a seed, that one alone."""

    study: Study
    model: str = ""
    seed: Seed = None

    @property
    def name(self) -> str:
        """As the table calls it."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.model or self.study.logs.name}{seed}"


@dataclass(frozen=True)
class Quantity:
    """A number of a model, by seed."""

    name: str
    values: Mapping[Seed, float]
    form: Form = score


def grid(one: Side, other: Side) -> Grid:
    """The table of a comparison. Raises ValueError for sides that have nothing in common."""
    _check(one, other)
    if bool(one.model) != bool(other.model):
        raise ValueError(
            f"{one.name} and {other.name}: one is a model, the other an experiment; give two "
            "models (WORKDIR:MODEL) or two experiments"
        )
    header = ["", f"A: {one.name}", f"B: {other.name}", "B − A", "seeds"]
    if one.model:
        return Grid(header, [row for row in _rows(one, other) if row[1:3] != [NONE, NONE]])
    both = [model for model in one.study.models if model in other.study.models]
    if not both:
        raise ValueError(f"{one.name} and {other.name} have no model of the same name")
    rows = []
    for model in both:
        pair = (replace(side, model=model) for side in (one, other))
        found = [row for row in _rows(*pair, short=True) if row[1:3] != [NONE, NONE]]
        rows += [[f"{model}: {name}", *cells] for name, *cells in found]
    return Grid(header, rows)


def legend(one: Side) -> str:
    """How to read the table."""
    logs = one.study.logs
    return LEGEND.format(retain=logs.retain.axis, forget=logs.forget.axis)


def alone(one: Side, other: Side) -> list[str]:
    """A line for each of two experiments about the models that only it has."""
    lines = []
    for letter, side, beside in (("A", one, other), ("B", other, one)):
        own = [model for model in side.study.models if model not in beside.study.models]
        if own and not side.model:
            lines.append(f"only in {letter}: {', '.join(own)}")
    return lines


def _check(one: Side, other: Side) -> None:
    """Raises ValueError for headlines that measure different things."""
    logs, others = one.study.logs, other.study.logs
    for a, b in ((logs.retain, others.retain), (logs.forget, others.forget)):
        if (a.name, a.axis) != (b.name, b.axis):
            raise ValueError(
                f"A ({one.name}) is measured by {a.axis}, B ({other.name}) by {b.axis}: these "
                "cannot be compared"
            )


def _rows(one: Side, other: Side, short: bool = False) -> Iterator[list[str]]:
    """A row for each quantity that both have."""
    steps = _steps(one) & _steps(other)
    shown = pick_steps(steps) if steps else ()
    own, others = ({q.name: q for q in _quantities(s, shown, short)} for s in (one, other))
    for name, a in own.items():
        if name in others:
            yield _row(a, others[name])


def _row(a: Quantity, b: Quantity) -> list[str]:
    pairs, told = Spread(tuple(difference(b.values, a.values).values())).finite, NONE
    if pairs:
        of = Spread(pairs)
        low, high = student(of)
        told = _signed(of.mean, a.form)
        if not math.isnan(low):
            told += f" [{_signed(low, a.form)}, {_signed(high, a.form)}]"
    sides = (cell(Spread(tuple(q.values.values())), q.form) for q in (a, b))
    return [a.name, *sides, told, str(len(pairs))]


def _signed(value: float, form: Form) -> str:
    text = form(value)
    return text if text.startswith("-") else f"+{text}"


def _quantities(side: Side, shown: tuple[int, ...], short: bool) -> Iterator[Quantity]:
    """What a report has of a model; `short`: what its headline says."""
    study, model = side.study, side.model
    logs, relearned = study.logs, study.relearned(model)

    def of(values: Mapping[Seed, float]) -> Mapping[Seed, float]:
        return values if side.seed is None else {s: v for s, v in values.items() if s == side.seed}

    named = {"retain": logs.retain, "forget": logs.forget}
    named |= {} if short else {measure.axis: measure for measure in logs.others}
    for name, measure in named.items():
        yield Quantity(f"{name} before", of(study.before(model, measure)))
    for step in shown[-1:] if short else shown:
        yield Quantity(f"forget at step {step}", of(_at(relearned, step)))
    if not short:
        for step in shown[-1:]:
            kept = _at(study.retained(model), step)
            yield Quantity(f"retain at step {step}", of(kept))
        yield Quantity("area under the curve", of(study.areas(model)))
    yield Quantity("robustness %", of(study.robustness(model)), percent)
    if not short:
        for unit, name in (("steps", "steps"), ("flops", "FLOPs")):
            yield Quantity(f"compute % {name}", of(study.compute(model, unit)), percent)


def _steps(side: Side) -> set[int]:
    return {int(step) for curve in side.study.relearned(side.model).values() for step in curve}


def _at(curves: Mapping[Seed, Curve], step: int) -> dict[Seed, float]:
    return {seed: curve.get(step, math.nan) for seed, curve in curves.items()}

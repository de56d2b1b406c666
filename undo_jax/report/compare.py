"""Two models, or two experiments, beside each other, with differences seed by seed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from undo_jax.checks import listed
from undo_jax.report import notes
from undo_jax.report.cards import attack_of
from undo_jax.report.cases import Case
from undo_jax.report.numbers import pick_steps
from undo_jax.report.statistics import Seed, Spread, student
from undo_jax.report.studies import Curve, Study, difference
from undo_jax.report.tables import NONE, Grid, cell, percent, score
from undo_jax.report.worst_case import bound_text, until

LEGEND = (
    "retain: {retain}; forget: {forget}, at step n by the strongest attack {until} that step, "
    "{counting}; retain at step n: at the same point; mean [lowest, highest] over seeds; the "
    "difference is B − A for each seed that both have: its mean and Student's 95 % interval, and "
    "over how many seeds"
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

    @property
    def cases(self) -> list[Case]:
        """The cases of its model, or of all models of the experiment."""
        models = [self.model] if self.model else self.study.models
        of_models = (case for model in models for case in self.study.cases(model).values())
        return [case for case in of_models if self.seed in (None, case.entry.seed)]


Quantities = dict[str, tuple[Mapping[Seed, float], Callable[[float], str]]]  # with their formats


def grid(a: Side, b: Side) -> Grid:
    """Returns the table of a comparison. Raises ValueError for sides with nothing in common."""
    for kind in ("retain", "forget"):
        left, right = (getattr(side.study.logs, kind) for side in (a, b))
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
    both = _common(a, b)
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
    return LEGEND.format(
        retain=logs.retain.axis,
        forget=logs.forget.axis,
        until=until(logs.min_retain),
        counting=bound_text(logs.retain, logs.min_retain),
    )


def unmatched(a: Side, b: Side) -> list[str]:
    """Returns a line for each of two experiments about the models that only it has."""
    lines = []
    for letter, side, other in (("A", a, b), ("B", b, a)):
        models = [model for model in side.study.models if model not in other.study.models]
        if models and not side.model:
            lines.append(f"only in {letter}: {', '.join(models)}")
    return lines


def unqualified(a: Side, b: Side) -> list[str]:
    """Returns a line for each side about models of which no attack leaves a useful one."""
    return [
        f"{letter}: {note}"
        for letter, side in (("A", a), ("B", b))
        for note in notes.unqualified(side.cases, side.study.logs)
    ]


def attacked_differently(a: Side, b: Side) -> list[str]:
    """Returns a line about the models that the two sides attacked by different attacks."""
    models: dict[tuple[str, str], list[str]] = {}  # by the attacks of A and of B
    for model in [a.model] if a.model else _common(a, b):
        attacks = _attacks(replace(a, model=model)), _attacks(replace(b, model=b.model or model))
        if all(attacks) and {*attacks[0]} != {*attacks[1]}:
            models.setdefault((listed(attacks[0]), listed(attacks[1])), []).append(model)
    return [
        f"{'' if a.model else f'{listed(names)}: '}attacked differently, so the strongest attacks "
        f"are not alike: by {of_a} in A, by {of_b} in B"
        for (of_a, of_b), names in models.items()
    ]


def _attacks(side: Side) -> list[str]:
    """Returns the names of the finished attacks on a model, without controls."""
    headline = side.study.logs.forget.name
    attacks = (attack_of(a, headline) for case in side.cases for a in case.attacks)
    return list(dict.fromkeys(attacks))


def _common(a: Side, b: Side) -> list[str]:
    """Returns the models that both experiments have."""
    return [model for model in a.study.models if model in b.study.models]


def _rows(a: Side, b: Side, short: bool = False) -> Iterator[list[str]]:
    """Yields a row for each quantity that both have and that is defined for one of them."""
    steps = _steps(a) & _steps(b)
    shown = pick_steps(steps) if steps else ()
    b_quantities = _quantities(b, shown, short)
    for name, (a_values, form) in _quantities(a, shown, short).items():
        if name not in b_quantities:
            continue
        b_values, _ = b_quantities[name]
        cells = [cell(Spread(tuple(values.values())), form) for values in (a_values, b_values)]
        if cells != [NONE, NONE]:
            seeds = Spread(tuple(difference(b_values, a_values).values())).finite
            yield [name, *cells, _interval(Spread(seeds), form), str(len(seeds))]


def _interval(differences: Spread, form: Callable[[float], str]) -> str:
    """Returns `mean [Student's interval]`, with signs; – without any difference."""
    if not differences.values:
        return NONE
    numbers = map(form, (differences.mean, *student(differences)))
    mean, low, high = (n if n.startswith("-") else f"+{n}" for n in numbers)
    return mean if len(differences.values) < 2 else f"{mean} [{low}, {high}]"


def _quantities(side: Side, shown: tuple[int, ...], short: bool) -> Quantities:
    """Returns what a report has of a model, by name; `short`: its headline, at the last step."""
    study, model = side.study, side.model
    logs, relearned = study.logs, study.relearned(model)
    metrics = {"retain": logs.retain, "forget": logs.forget}
    metrics |= {} if short else {measure.axis: measure for measure in logs.other_metrics}
    scores = {f"{name} before": study.before(model, metrics[name]) for name in metrics}
    for step in shown[-1:] if short else shown:
        scores[f"forget at step {step}"] = _at(relearned, step)
    for step in shown[-1:]:
        scores[f"retain at step {step}"] = _at(study.retained(model), step)
    if not short:
        scores["area under the curve"] = study.areas(model)
    percentages = {"robustness %": study.robustness(model)}
    if not short:
        for unit, name in (("steps", "steps"), ("flops", "FLOPs")):
            percentages[f"compute % {name}"] = study.compute(model, unit)
    return {
        name: ({s: v for s, v in values.items() if side.seed in (None, s)}, form)
        for by_name, form in ((scores, score), (percentages, percent))
        for name, values in by_name.items()
    }


def _steps(side: Side) -> set[int]:
    return {int(step) for curve in side.study.relearned(side.model).values() for step in curve}


def _at(curves: Mapping[Seed, Curve], step: int) -> dict[Seed, float]:
    return {seed: curve.get(step, math.nan) for seed, curve in curves.items()}

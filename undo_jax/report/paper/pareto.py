"""Retain against forget while every setting of every method is relearned (paper §4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import Claim
from undo_jax.report.drawing import BLACK, FAMILIES, MUTED, darker
from undo_jax.report.paper import claim, missing_models, score_label
from undo_jax.report.pareto_fronts import hypervolume
from undo_jax.report.records import Measure
from undo_jax.report.statistics import Spread
from undo_jax.report.studies import PaperPoint, Seed, Study, difference
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "UNDO against other methods: retain and forget under relearning"
UNDO, ORACLE = "UNDO", "data filtering"
MARKS = {  # marker, colour and size of each method
    "GradDiff": ("o", FAMILIES[0], 5.5),
    "MaxEnt": ("s", FAMILIES[1], 5.0),
    "RMU": ("^", FAMILIES[2], 6.0),
    "NPO": ("v", FAMILIES[4], 6.0),
    "SAM": ("X", FAMILIES[6], 6.0),
    "RepNoise": ("P", FAMILIES[7], 6.0),
    UNDO: ("D", FAMILIES[3], 6.0),
    ORACLE: ("*", BLACK, 12.0),
}
BEATEN = ("RepNoise", "SAM")  # substantially, as the paper says
EARLY = 40 / 500  # of the attack's steps: the paper's second column
NATS = 8.0  # the worst retain and the best forget that count, if they are cross entropies
SUBSTANTIAL = 0.1  # more hypervolume by this share is substantially more
GAIN = "difference of hypervolumes"
RELEARNED, PERMUTED = "relearning steps", "steps on permuted answers"


def method(model: str) -> str | None:
    """Returns the method of a model, the first word of its name; None if it is of no method."""
    name = ORACLE if model == "oracle" else model.partition(" ")[0]
    return name if name in MARKS else None


def columns(study: Study) -> tuple[int, int, int]:
    """Returns the relearning steps shown: the first, the one nearest to 40 of 500, the last."""
    curves = (curve for model in study.models for curve in study.relearned(model).values())
    steps = sorted({step for curve in curves for step in curve}) or [0]
    early = min(steps[1:] or steps, key=lambda step: abs(step - EARLY * steps[-1]))
    return steps[0], early, steps[-1]


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields scores of each model at the steps shown, and hypervolumes of the methods."""
    for study in studies:
        for attack, step in product((RELEARNED, PERMUTED), dict.fromkeys(columns(study))):
            for model, seed, forget, retain in _places(study, step, attack):
                if math.isfinite(forget):
                    panel = f"after {step} {attack}"
                    yield PaperPoint(panel, study.setting, model, seed, forget, retain)
            panel = "hypervolume" if attack == RELEARNED else f"hypervolume, {attack}"
            for name, areas in hypervolumes(study, step, attack).items():
                for seed, area in areas.items():
                    if math.isfinite(area):
                        yield PaperPoint(panel, study.setting, name, seed, step, area)


def _places(study: Study, step: int, attack: str) -> Iterator[tuple[str, Seed, float, float]]:
    """Yields model, seed, forget and retain score of each model of a method at a step.

    The scores are nan if the attack has none there.
    """
    for model in filter(method, study.models):
        if attack == PERMUTED:
            curves = study.control(model, "permuted")
            retained = study.control_retained(model, "permuted")
        else:
            curves, retained = study.relearned(model), study.retained(model)
        for seed, curve in curves.items():
            yield model, seed, curve.get(step, math.nan), retained[seed].get(step, math.nan)


def hypervolumes(study: Study, step: int, attack: str = RELEARNED) -> dict[str, dict[Seed, float]]:
    """Returns the hypervolume of each method's front after a step, as a share of what is possible.

    The front is over the method's settings, for each seed; nan where all settings diverged. Scores
    count as shares of the way from the worst to the best, see `merit`.
    """
    merits: dict[str, dict[Seed, list[tuple[float, float]]]] = {}
    for model, seed, forget, retain in _places(study, step, attack):
        places = merits.setdefault(str(method(model)), {}).setdefault(seed, [])
        if math.isfinite(forget):
            place = merit(forget, study.forget, less=True), merit(retain, study.logs.retain)
            places.append(place)
    return {
        name: {seed: hypervolume(places) if places else math.nan for seed, places in seeds.items()}
        for name, seeds in merits.items()
    }


def merit(score: float, measure: Measure, less: bool = False) -> float:
    """Returns a score as a share of the way from the worst, 0, to the best, 1, within [0, 1].

    Accuracies go from 0 to 1, cross entropies from 0 to `NATS`.

    Args:
        score: the score.
        measure: what it is a score of.
        less: whether worse scores are better, as of what is forgotten.
    """
    share = min(max(score / most(measure), 0.0), 1.0)
    return share if measure.higher_is_better != less else 1 - share


def most(measure: Measure) -> float:
    """Returns the largest score that counts."""
    return 1.0 if measure.higher_is_better and not measure.unit else NATS


def draw(studies: Sequence[Study], points: Sequence[PaperPoint]) -> Figure:
    """Returns a row per setting, a column per number of relearning steps.

    Better is to the upper left. Where answers can be permuted, a second row shows the models that
    relearn those instead.
    """
    rows = [
        (study, attack)
        for study, attack in product(studies, (RELEARNED, PERMUTED))
        if any(p.setting == study.setting and p.panel.endswith(f" {attack}") for p in points)
    ]
    fig, axes = panels.figure(len(rows), 3, legend_rows=1)
    for row, (study, attack) in zip(axes, rows, strict=True):
        label = score_label(study, attack == PERMUTED)
        for ax, step in zip(row, columns(study), strict=True):
            key = f"after {step} {attack}", study.setting
            _scatter(ax, [p for p in points if (p.panel, p.setting) == key], study)
            panels.title(ax, f"{sentence(study.setting)}, {step} steps")
            ax.set_title("↖ better", loc="right", fontsize=7.5, pad=6, color=MUTED)
            ax.set_xlabel(label, fontsize=8.5)
        row[0].set_ylabel(study.logs.retain.axis, fontsize=8.5)
        _share_limits(row, study)
    _legend(fig)
    return fig


def _scatter(ax: Axes, points: list[PaperPoint], study: Study) -> None:
    """Draws a marker per model at its means over seeds; joins those of UNDO in the order of α."""
    places: dict[str, list[tuple[float, float]]] = {}
    limits = most(study.forget), most(study.logs.retain)
    for model in dict.fromkeys(p.model for p in points):
        of_model = [p for p in points if p.model == model]
        x, y = (Spread(tuple(getattr(p, axis) for p in of_model)).mean for axis in "xy")
        places.setdefault(str(method(model)), []).append((min(x, limits[0]), min(y, limits[1])))
    for z, (name, (mark, colour, size)) in enumerate(MARKS.items()):
        if name in places:
            x, y = zip(*places[name], strict=True)
            ax.plot(
                x, y, mark, ms=size, color=colour, mec="white", mew=0.6, linewidth=1.0,
                linestyle="-" if name == UNDO else "", zorder=5 + z, clip_on=False,
            )  # fmt: skip
    ax.tick_params(length=0, labelsize=8.5)


def _share_limits(row: list[Axes], study: Study) -> None:
    """Gives the panels of a setting the same limits; reverses axes of cross entropies."""
    for axis, measure in (("x", study.forget), ("y", study.logs.retain)):
        limits = -0.05, 1.05
        if most(measure) != 1.0:
            ranges = [getattr(ax, f"get_{axis}lim")() for ax in row]
            limits = max(high for _, high in ranges), min(low for low, _ in ranges)
        for ax in row:
            getattr(ax, f"set_{axis}lim")(*limits)


def _legend(fig: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=mark, ms=size, color=colour, mec="white", mew=0.6, label=name,
               linestyle="-" if name == UNDO else "")
        for name, (mark, colour, size) in MARKS.items()
    ]  # fmt: skip
    fig.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles),
        frameon=False, fontsize=8.5, labelcolor=[darker(look[1]) for look in MARKS.values()],
        handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        "Retain score against forget score, both under the attack whose learning rate brings most "
        "back at that step on that seed: before relearning, at the step nearest to 40 of 500, and "
        "at the last. Each marker is a setting of a method (learning rates, weights, α), the mean "
        "over seeds; those of UNDO are joined in the order of α; the star is data filtering. Where "
        "answers can be permuted, the row below shows the same models relearn × and ÷ with "
        "permuted answers, which none of them knew: what sets a method apart there, too, is not "
        "what it knows. Axes "
        f"of cross entropies are reversed, so that better is to the upper left; above {NATS:g} "
        "nats they are drawn there. The hypervolume of a method is the area that its settings "
        "dominate, as a share of what is possible; one that diverged dominates nothing. The "
        "reference point was fixed before: forget accuracy 1 and retain accuracy 0; or a forget "
        f"cross entropy of 0 and a retain one of {NATS:g} nats, and then a forget cross entropy "
        f"counts up to {NATS:g}."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields: UNDO's front dominates more than any other's, and substantially more than two."""
    for study in studies:
        for step in dict.fromkeys(columns(study)):
            areas = hypervolumes(study, step)
            undo, oracle = areas.pop(UNDO, {}), areas.pop(ORACLE, {})
            absent = [name for name in BEATEN if name not in areas]
            if absent and study.logs.unfinished:
                break  # their attacks may be to come
            if absent:
                raise missing_models(study, f"attacked model of {absent[0]}")
            yield _dominates(study, "UNDO dominates", step, undo, areas)
            for name in BEATEN if step else ():
                says = f"UNDO beats {name} substantially at {step} relearning steps"
                bounds = {seed: (1 + SUBSTANTIAL) * area for seed, area in areas[name].items()}
                quantity = f"its hypervolume less {1 + SUBSTANTIAL:g} times that of {name}"
                yield claim(study, says, quantity, difference(undo, bounds), paper=True)
            says = f"data filtering, one model, dominates UNDO at {step} relearning steps"
            yield claim(study, says, GAIN, difference(oracle, undo))
        for step in dict.fromkeys(columns(study)[1:]):
            areas = hypervolumes(study, step, PERMUTED)
            undo = areas.pop(UNDO, {})
            areas.pop(ORACLE, None)
            if undo and areas:
                says = "of permuted answers, too, UNDO dominates"
                yield _dominates(study, says, step, undo, areas, paper=False)


def _dominates(
    study: Study,
    says: str,
    step: int,
    undo: Mapping[Seed, float],
    rivals: Mapping[str, Mapping[Seed, float]],
    paper: bool = True,
) -> Claim:
    """Returns the claim about UNDO and the method whose hypervolume has the largest mean."""
    means = {name: Spread(tuple(areas.values())).mean for name, areas in rivals.items()}
    best = max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
    says = f"{says} at {step} relearning steps (the best other here: {best})"
    return claim(study, says, GAIN, difference(undo, rivals[best]), paper=paper)

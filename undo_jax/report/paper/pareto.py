"""Retain against forget while every setting of every method is relearned (paper §4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import Claim
from undo_jax.report.drawing import BLACK, FAMILIES, MUTED, darker
from undo_jax.report.numbers import Spread
from undo_jax.report.paper import lacking
from undo_jax.report.pareto_fronts import hypervolume
from undo_jax.report.records import Measure
from undo_jax.report.studies import Curve, Point, Seed, Study, difference
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[Seed, Curve]
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
    """The method of a model: its name up to the first space. None for models of no method."""
    name = ORACLE if model == "oracle" else model.partition(" ")[0]
    return name if name in MARKS else None


def columns(study: Study) -> tuple[int, int, int]:
    """Relearning steps: none, the evaluated one nearest to 40 of 500, and the last."""
    curves = (c for model in study.models for c in study.relearned(model).values())
    steps = sorted({step for curve in curves for step in curve}) or [0]
    early = min(steps[1:] or steps, key=lambda step: abs(step - EARLY * steps[-1]))
    return steps[0], early, steps[-1]


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Forget and retain score of each model at the steps shown; hypervolumes of the methods."""
    found: list[Point] = []
    for setting, study in studies.items():
        for what, step in product((RELEARNED, PERMUTED), dict.fromkeys(columns(study))):
            for model in filter(method, study.models):
                scores, kept = _scores(study, model, what)
                for seed, curve in scores.items():
                    if step in curve:
                        place = curve[step], kept[seed][step]
                        found.append(Point(_panel(step, what), setting, model, seed, *place))
            for name, of in hypervolumes(study, step, what).items():
                for seed, area in of.items():
                    panel = "hypervolume" if what == RELEARNED else f"hypervolume, {what}"
                    if math.isfinite(area):
                        found.append(Point(panel, setting, name, seed, step, area))
    return found


def _panel(step: int, what: str) -> str:
    return f"after {step} {what}"


def _scores(study: Study, model: str, what: str) -> tuple[Curves, Curves]:
    """Scores of what is relearned and of what is kept, by seed and step; empty without any."""
    if what == PERMUTED:
        return study.control(model, "permuted"), study.control_retained(model, "permuted")
    return study.relearned(model), study.retained(model)


def hypervolumes(study: Study, step: int, what: str = RELEARNED) -> dict[str, dict[Seed, float]]:
    """Of each method's front over its settings after a step: its share of what is possible.

    For each seed; nan where all settings diverged. Scores count as shares of the way from the worst
    to the best, see `merit`.
    """
    places: dict[str, dict[Seed, list[tuple[float, float]]]] = {}
    for model in filter(method, study.models):
        scores, kept = _scores(study, model, what)
        for seed, curve in scores.items():
            of = places.setdefault(str(method(model)), {}).setdefault(seed, [])
            if step in curve:
                forget = merit(curve[step], study.forget, less=True)
                of.append((forget, merit(kept[seed][step], study.logs.retain)))
    return {
        name: {seed: hypervolume(of) if of else math.nan for seed, of in seeds.items()}
        for name, seeds in places.items()
    }


def merit(score: float, measure: Measure, less: bool = False) -> float:
    """A score as a share of the way from the worst, 0, to the best, 1, and no further.

    Accuracies go from 0 to 1, cross entropies from 0 to `NATS`. `less`: worse scores are better, as
    of what is forgotten.
    """
    share = min(max(score / most(measure), 0.0), 1.0)
    return share if measure.higher_is_better != less else 1 - share


def most(measure: Measure) -> float:
    """The largest score that counts."""
    return 1.0 if measure.higher_is_better and not measure.unit else NATS


def draw(studies: Mapping[str, Study]) -> Figure:
    """A row per setting, a column per number of relearning steps; better is to the upper left.

    Where answers can be permuted, a second row shows the models that relearn those instead.
    """
    shown = points(studies)
    rows = [
        (setting, what)
        for setting, what in product(studies, (RELEARNED, PERMUTED))
        if any(p.setting == setting and p.panel.endswith(f" {what}") for p in shown)
    ]
    fig, axes = panels.figure(len(rows), 3, legend_rows=1)
    for row, (setting, what) in zip(axes, rows, strict=True):
        study = studies[setting]
        for ax, step in zip(row, columns(study), strict=True):
            here = [p for p in shown if (p.panel, p.setting) == (_panel(step, what), setting)]
            _scatter(ax, here, study)
            panels.title(ax, f"{sentence(setting)}, {step} steps")
            ax.set_title("↖ better", loc="right", fontsize=7.5, pad=6, color=MUTED)
            told = study.forget.axis if what == RELEARNED else "the same, permuted answers"
            ax.set_xlabel(told, fontsize=8.5)
        row[0].set_ylabel(study.logs.retain.axis, fontsize=8.5)
        _same_limits(row, study)
    _legend(fig)
    return fig


def _scatter(ax: Axes, shown: list[Point], study: Study) -> None:
    """A marker per model at its means over seeds, those of UNDO joined in the order of alpha."""
    places: dict[str, list[tuple[float, float]]] = {}
    limits = most(study.forget), most(study.logs.retain)
    for model in dict.fromkeys(p.model for p in shown):
        own = [p for p in shown if p.model == model]
        x, y = (Spread(tuple(getattr(p, axis) for p in own)).mean for axis in "xy")
        places.setdefault(str(method(model)), []).append((min(x, limits[0]), min(y, limits[1])))
    for z, (name, (mark, colour, size)) in enumerate(MARKS.items()):
        if name in places:
            x, y = zip(*places[name], strict=True)
            joined = "-" if name == UNDO else ""
            ax.plot(
                x, y, mark, ms=size, color=colour, mec="white", mew=0.6, linestyle=joined,
                linewidth=1.0, zorder=5 + z, clip_on=False,
            )  # fmt: skip
    ax.tick_params(length=0, labelsize=8.5)


def _same_limits(row: list[Axes], study: Study) -> None:
    """One scale for the panels of a setting; axes of cross entropies are reversed."""
    for axis, measure in (("x", study.forget), ("y", study.logs.retain)):
        if most(measure) == 1.0:
            limits = -0.05, 1.05
        else:
            found = [getattr(ax, f"get_{axis}lim")() for ax in row]
            limits = max(high for _, high in found), min(low for low, _ in found)
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


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
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


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """UNDO's front dominates more than any other method's, and substantially more than two."""
    found = []
    for setting, study in studies.items():
        for step in dict.fromkeys(columns(study)):
            areas = hypervolumes(study, step)
            own, filtered = areas.pop(UNDO, {}), areas.pop(ORACLE, {})
            absent = [name for name in BEATEN if name not in areas]
            if absent and study.logs.unfinished:
                break  # their attacks may be to come
            if absent:
                raise lacking(study, f"attacked model of {absent[0]}")
            found.append(_dominates("UNDO dominates", step, setting, own, areas))
            for other in BEATEN if step else ():
                says = f"UNDO beats {other} substantially at {step} relearning steps"
                more = {seed: (1 + SUBSTANTIAL) * area for seed, area in areas[other].items()}
                what = f"its hypervolume less {1 + SUBSTANTIAL:g} times that of {other}"
                found.append(Claim(says, setting, what, difference(own, more)))
            says = f"data filtering, one model, dominates UNDO at {step} relearning steps"
            values = difference(filtered, own)
            found.append(Claim(says, setting, GAIN, values, paper=False))
        for step in dict.fromkeys(columns(study)[1:]):
            areas = hypervolumes(study, step, PERMUTED)
            own = areas.pop(UNDO, {})
            areas.pop(ORACLE, None)
            if own and areas:
                says = "of permuted answers, too, UNDO dominates"
                found.append(_dominates(says, step, setting, own, areas, paper=False))
    return found


def _dominates(
    says: str,
    step: int,
    setting: str,
    own: Mapping[Seed, float],
    others: Mapping[str, Mapping[Seed, float]],
    paper: bool = True,
) -> Claim:
    """UNDO against the method whose hypervolume has the largest mean; any, if none has one."""
    means = {name: Spread(tuple(of.values())).mean for name, of in others.items()}
    best = max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
    whole = f"{says} at {step} relearning steps (the best other here: {best})"
    return Claim(whole, setting, GAIN, difference(own, others[best]), paper=paper)

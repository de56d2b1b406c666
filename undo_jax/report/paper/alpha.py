"""Robustness rises with the compute of distillation, as α does (paper §4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from undo_jax.report import panels
from undo_jax.report.claims import Claim
from undo_jax.report.drawing import GREY, PURPLE, WARM, shade
from undo_jax.report.numbers import Spread
from undo_jax.report.panels import Look
from undo_jax.report.paper import lacking
from undo_jax.report.studies import Point, Seed, Study, lines
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "UNDO: robustness for compute"
FORGET, PERMUTED = "relearning", "relearning permuted answers"
TRADE = {"steps": "robustness against steps", "flops": "robustness against FLOPs"}
FRESH, OTHERS = "Unlearn-and-Distill", "other β"


def alphas(study: Study) -> dict[str, float]:
    """The models of the α grid, by rising α; those of the β ablation are not among them."""
    found = {}
    for model in study.models:
        alpha = next(iter(study.cases(model).values())).entry.alpha
        if alpha is not None and "β" not in model:
            found[model] = alpha
    return dict(sorted(found.items(), key=lambda one: one[1]))


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Robustness and compute of each distilled model; forget scores by relearning step."""
    found: list[Point] = []
    for setting, study in studies.items():
        for model in study.models:
            robustness = study.robustness(model)
            for unit, panel in TRADE.items():
                for seed, spent in study.compute(model, unit).items():
                    if model != "oracle" and math.isfinite(spent):
                        found.append(Point(panel, setting, model, seed, spent, robustness[seed]))
            found += lines(FORGET, setting, model, study.relearned(model))
            found += lines(PERMUTED, setting, model, study.control(model, "permuted"))
    return found


def _looks(study: Study) -> dict[str, Look]:
    grid = alphas(study)
    places = {m: rank / max(len(grid) - 1, 1) for rank, m in enumerate(grid)}
    looks = {"unlearn-only": Look(WARM)}
    for model, place in places.items():  # without noise it is unlearn-only, or near
        looks[model] = Look(shade(place), "-" if grid[model] else (0, (1, 1.8)), "o")
    fresh = Look(PURPLE, (0, (7, 1.8, 1.2, 1.8)), "D")
    return {**looks, FRESH: fresh, "oracle": panels.FILTERING, OTHERS: Look(GREY, "", "x")}


def draw(studies: Mapping[str, Study]) -> Figure:
    """A row per setting: robustness by steps and by FLOPs, relearning, and of permuted answers."""
    shown = points(studies)
    columns = [*TRADE.values(), FORGET]
    columns += [PERMUTED] if any(p.panel == PERMUTED for p in shown) else []
    looks = {name: look for study in studies.values() for name, look in _looks(study).items()}
    fig, axes = panels.figure(len(studies), len(columns), legend_rows=2)
    for row, (setting, study) in enumerate(studies.items()):
        for ax, panel in zip(axes[row], columns, strict=True):
            if panel in TRADE.values():
                _trade(ax, shown, panel, setting, looks)
                unit = "steps" if panel == TRADE["steps"] else "FLOPs"
                panels.title(ax, f"{sentence(setting)}: robustness, %")
                ax.set_xlabel(f"distillation, % of the oracle's {unit}", fontsize=8.5)
                continue
            curves = panels.curves_of(shown, panel, setting)
            curves = {model: curves[model] for model in looks if model in curves}
            told = study.forget.axis if panel == FORGET else "the same, permuted answers"
            panels.relearning(ax, curves, looks, study.forget, told)
    panels.legend(fig, looks, columns=-(-len(looks) // 2))
    return fig


def _trade(
    ax: Axes, shown: list[Point], panel: str, setting: str, looks: Mapping[str, Look]
) -> None:
    """A point per model at its means; small crosses for other β; a star for data filtering."""
    places: dict[str, list[Point]] = {}
    for p in shown:
        if (p.panel, p.setting) == (panel, setting):
            places.setdefault(p.model, []).append(p)
    for model, of in places.items():
        if model in looks:
            panels.mark(ax, of, looks[model].colour, looks[model].mark)
        elif (y := Spread(tuple(p.y for p in of))).finite:
            x = Spread(tuple(p.x for p in of))
            ax.plot(x.mean, y.mean, looks[OTHERS].mark, ms=5, color=GREY, zorder=4)
    panels.data_filtering(ax)


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
    return (
        "Robustness is (P − P_unlearn-only) / (P_oracle − P_unlearn-only) in %, P the forget score "
        "of the strongest attack over all steps and learning rates, against the compute of "
        "distillation in % of the oracle's training: in steps, and in FLOPs with the teacher's "
        "forward pass; the star is data filtering. Bars and bands go from the lowest to the "
        "highest seed; crosses are other β (means). Then: forget score against relearning steps, "
        "and of permuted answers, which nobody knew."
    )


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """Robustness and compute rise with α, robustness with compute, and the largest α is robust."""
    found = []
    for setting, study in studies.items():
        grid = alphas(study)
        if not grid:
            raise lacking(study, "model with an α")
        robust = {model: study.robustness(model) for model in grid}
        spent = {model: study.compute(model, "steps") for model in grid}
        seeds = list(study.cases(next(iter(grid))))
        for says, values, unit in (
            ("robustness rises with α", robust, "% of robustness per unit of α"),
            ("the compute of distillation rises with α", spent, "% of the oracle's steps per α"),
        ):
            slopes = {s: _slope([*grid.values()], _at(values, s)) for s in seeds}
            found.append(Claim(says, setting, f"slope over the grid, {unit}", slopes))
        likeness = {s: _correlation(_at(spent, s), _at(robust, s)) for s in seeds}
        found.append(
            Claim(
                "robustness for compute is near a line",
                setting,
                "correlation of robustness and steps over α",
                likeness,
                bound=0.9,
            )
        )
        best = max(grid, key=lambda m: np.nan_to_num(np.mean([*robust[m].values()]), nan=-np.inf))
        best_robust, best_spent = (of[best] for of in (robust, spent))
        says = f"at its strongest (here {best}) UNDO is as robust as data filtering, within 10 %"
        found.append(Claim(says, setting, "robustness, %", best_robust, bound=90.0))
        says = f"... at no more than 80 % of its compute ({best})"
        found.append(
            Claim(says, setting, "% of the oracle's steps", best_spent, bound=80.0, above=False)
        )
        found += _betas(setting, study)
    return found


def _betas(setting: str, study: Study) -> list[Claim]:
    """Whether β matters: at each α of the ablation, the largest difference between two β."""
    found, grid = [], alphas(study)
    for model in grid:
        others = [m for m in study.models if m.startswith(f"{model} β=")]
        if others:
            of = [study.robustness(m) for m in (model, *others)]
            spans = {s: float(np.ptp([o.get(s, math.nan) for o in of])) for s in of[0]}
            told = ", ".join(m.partition("β=")[2] for m in others)
            says = f"β (0.1, {told}) makes a difference of less than 20 % at {model}"
            what = "robustness, %: highest less lowest over β"
            found.append(Claim(says, setting, what, spans, bound=20.0, above=False, paper=False))
    return found


def _at(values: Mapping[str, Mapping[Seed, float]], seed: Seed) -> list[float]:
    return [of.get(seed, math.nan) for of in values.values()]


def _slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() and len(x) > 1 else math.nan


def _correlation(x: list[float], y: list[float]) -> float:
    known = np.isfinite(x).all() and np.isfinite(y).all() and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if known else math.nan

"""Robustness rises with the compute of distillation, as α does (paper §4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from undo_jax.report import panels
from undo_jax.report.claims import Claim
from undo_jax.report.drawing import GREY, PURPLE, WARM, shade
from undo_jax.report.numbers import Spread
from undo_jax.report.panels import Look
from undo_jax.report.paper import (
    FORGET,
    FRESH,
    PERMUTED,
    compute_axes,
    compute_points,
    missing_models,
    relearning_panel,
    relearning_points,
    setting_title,
)
from undo_jax.report.studies import PaperPoint, Seed, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "UNDO: robustness for compute"
COMPUTE = {"robustness against steps": "steps", "robustness against FLOPs": "FLOPs"}  # units
OTHERS = "other β"


def alphas(study: Study) -> dict[str, float]:
    """Returns the models of the α grid, by rising α, without those of the β ablation."""
    grid = {}
    for model in study.models:
        alpha = next(iter(study.cases(model).values())).entry.alpha
        if alpha is not None and "β" not in model:
            grid[model] = alpha
    return dict(sorted(grid.items(), key=lambda entry: entry[1]))


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields robustness and compute of each distilled model, and forget scores by step."""
    for study in studies:
        for model in study.models:
            for panel, unit in COMPUTE.items():
                yield from compute_points(study, model, unit.lower(), panel)
            yield from relearning_points(study, model)


def looks_of(study: Study) -> dict[str, Look]:
    """Returns the look of each model that has a line."""
    grid = alphas(study)
    looks = {"unlearn-only": Look(WARM)}
    for rank, (model, alpha) in enumerate(
        grid.items()
    ):  # without noise it is unlearn-only, or near
        style = "-" if alpha else (0, (1, 1.8))
        looks[model] = Look(shade(rank / max(len(grid) - 1, 1)), style, "o")
    fresh = Look(PURPLE, (0, (7, 1.8, 1.2, 1.8)), "D")
    return {**looks, FRESH: fresh, "oracle": panels.FILTERING, OTHERS: Look(GREY, "", "x")}


def draw(studies: Sequence[Study]) -> Figure:
    """Returns a row per setting: robustness by steps and by FLOPs, relearning, permuted answers."""
    shown = list(points(studies))
    columns = [*COMPUTE, FORGET]
    columns += [PERMUTED] if any(p.panel == PERMUTED for p in shown) else []
    looks = {name: look for study in studies for name, look in looks_of(study).items()}
    fig, axes = panels.figure(len(studies), len(columns), legend_rows=2)
    for row, study in zip(axes, studies, strict=True):
        for ax, panel in zip(row, columns, strict=True):
            of_panel = [p for p in shown if (p.panel, p.setting) == (panel, study.setting)]
            if panel in COMPUTE:
                _draw_compute(ax, of_panel, looks)
                compute_axes(ax, f"{setting_title(study)}: robustness, %", COMPUTE[panel])
            else:
                order = list(looks)
                of_panel.sort(key=lambda p: order.index(p.model) if p.model in looks else -1)
                relearning_panel(ax, of_panel, panel, study, looks)
    panels.legend(fig, looks, columns=-(-len(looks) // 2))
    return fig


def _draw_compute(ax: Axes, points: list[PaperPoint], looks: Mapping[str, Look]) -> None:
    """Draws a marker per model at its means, and small crosses for other β."""
    for model in dict.fromkeys(p.model for p in points):
        of_model = [p for p in points if p.model == model]
        if model in looks:
            panels.mark(ax, of_model, looks[model].colour, looks[model].mark)
            continue
        x, y = (Spread(tuple(getattr(p, axis) for p in of_model)) for axis in "xy")
        if y.finite:
            ax.plot(x.mean, y.mean, looks[OTHERS].mark, ms=5, color=GREY, zorder=4)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        "Robustness is (P − P_unlearn-only) / (P_oracle − P_unlearn-only) in %, P the forget score "
        "of the strongest attack over all steps and learning rates, against the compute of "
        "distillation in % of the oracle's training: in steps, and in FLOPs with the teacher's "
        "forward pass; the star is data filtering. Bars and bands go from the lowest to the "
        "highest seed; crosses are other β (means). Then: forget score against relearning steps, "
        "and of permuted answers, which nobody knew."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields: robustness and compute rise with α, together, and the largest α is robust."""
    for study in studies:
        grid, setting = alphas(study), study.setting
        if not grid:
            raise missing_models(study, "model with an α")
        robustness = {model: study.robustness(model) for model in grid}
        steps = {model: study.compute(model, "steps") for model in grid}
        seeds = list(study.cases(next(iter(grid))))
        for says, values, unit in (
            ("robustness rises with α", robustness, "% of robustness per unit of α"),
            ("the compute of distillation rises with α", steps, "% of the oracle's steps per α"),
        ):
            slopes = {s: _slope([*grid.values()], _of_seed(values, s)) for s in seeds}
            yield Claim(says, setting, f"slope over the grid, {unit}", slopes)
        correlations = {s: _correlation(_of_seed(steps, s), _of_seed(robustness, s)) for s in seeds}
        says = "robustness for compute is near a line"
        quantity = "correlation of robustness and steps over α"
        yield Claim(says, setting, quantity, correlations, bound=0.9)

        means = {m: np.nan_to_num(np.mean([*robustness[m].values()]), nan=-np.inf) for m in grid}
        best = max(grid, key=means.__getitem__)
        says = f"at its strongest (here {best}) UNDO is as robust as data filtering, within 10 %"
        yield Claim(says, setting, "robustness, %", robustness[best], bound=90.0)
        says = f"... at no more than 80 % of its compute ({best})"
        quantity = "% of the oracle's steps"
        yield Claim(says, setting, quantity, steps[best], bound=80.0, above=False)
        for model in grid:
            yield from _beta_claims(study, model)


def _beta_claims(study: Study, model: str) -> Iterator[Claim]:
    """Yields, for an α of the ablation, whether β matters: the largest difference between two β."""
    betas = [name for name in study.models if name.startswith(f"{model} β=")]
    if betas:
        robustness = [study.robustness(name) for name in (model, *betas)]
        spans = {
            seed: float(np.ptp([of_model.get(seed, math.nan) for of_model in robustness]))
            for seed in robustness[0]
        }
        listed = ", ".join(name.partition("β=")[2] for name in betas)
        says = f"β (0.1, {listed}) makes a difference of less than 20 % at {model}"
        quantity = "robustness, %: highest less lowest over β"
        yield Claim(says, study.setting, quantity, spans, bound=20.0, above=False, paper=False)


def _of_seed(values: Mapping[str, Mapping[Seed, float]], seed: Seed) -> list[float]:
    return [of_model.get(seed, math.nan) for of_model in values.values()]


def _slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() and len(x) > 1 else math.nan


def _correlation(x: list[float], y: list[float]) -> float:
    is_defined = np.isfinite(x).all() and np.isfinite(y).all() and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if is_defined else math.nan

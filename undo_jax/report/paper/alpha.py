"""Robustness rises with the compute of distillation, as α does (paper §4)."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import GREY, PURPLE, WARM, shade
from undo_jax.report.panels import FILTERING, Look
from undo_jax.report.paper import (
    FRESH,
    PaperPlot,
    claim,
    compute_panel,
    compute_points,
    counted_attacks,
    counting,
    missing_models,
    relearning_points,
    score_panels,
)
from undo_jax.report.studies import PaperPoint, Seed, Study
from undo_jax.report.tables import sentence

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


def looks_of(studies: Sequence[Study]) -> dict[str, Look]:
    """Returns the look of each model that has a line."""
    looks = {"unlearn-only": Look(WARM)}
    for study in studies:
        grid = alphas(study)
        for rank, (model, alpha) in enumerate(grid.items()):
            style = "-" if alpha else (0, (1, 1.8))  # without noise it is unlearn-only, or near
            looks[model] = Look(shade(rank / max(len(grid) - 1, 1)), style, "o")
    return {**looks, FRESH: Look(PURPLE, (0, (7, 1.8, 1.2, 1.8)), "D"), "oracle": FILTERING}


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes a row per setting: robustness by steps and by FLOPs, relearning, its control."""
    looks = {**looks_of(studies), OTHERS: Look(GREY, "", "x")}
    rows = []
    for study in studies:
        title = f"{sentence(study.setting)}: robustness, %"
        compute = [
            compute_panel(panel, study, title, unit, lambda p: looks.get(p.model, looks[OTHERS]))
            for panel, unit in COMPUTE.items()
        ]
        rows.append([*compute, *score_panels(study, points)])
    return PaperPlot(rows, looks, legend_rows=2)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        "Robustness is (P − P_unlearn-only) / (P_oracle − P_unlearn-only) in %, P the forget score "
        f"of the strongest attack over all steps and learning rates, {counting(studies)}; against "
        "the compute of distillation in % of the oracle's training: in steps, and in FLOPs with "
        "the teacher's forward pass; the star is data filtering. Bars and bands go from the lowest "
        "to the highest seed; crosses are other β (means). Then: forget score against relearning "
        f"steps, {counted_attacks(studies)}; and that of permuted answers, which nobody knew."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields: robustness and compute rise with α, together, and the largest α is robust."""
    for study in studies:
        grid = alphas(study)
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
            yield claim(study, says, f"slope over the grid, {unit}", slopes, paper=True)
        correlations = {s: _correlation(_of_seed(steps, s), _of_seed(robustness, s)) for s in seeds}
        says = "robustness for compute is near a line"
        quantity = "correlation of robustness and steps over α"
        yield claim(study, says, quantity, correlations, paper=True, bound=0.9)

        means = {m: np.nan_to_num(np.mean([*robustness[m].values()]), nan=-np.inf) for m in grid}
        best = max(grid, key=means.__getitem__)
        says = f"at its strongest (here {best}) UNDO is as robust as data filtering, within 10 %"
        yield claim(study, says, "robustness, %", robustness[best], paper=True, bound=90.0)
        says = f"... at no more than 80 % of its compute ({best})"
        quantity = "% of the oracle's steps"
        yield claim(study, says, quantity, steps[best], paper=True, bound=80.0, above=False)
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
        yield claim(study, says, quantity, spans, bound=20.0, above=False)


def _of_seed(values: Mapping[str, Mapping[Seed, float]], seed: Seed) -> list[float]:
    return [of_model.get(seed, math.nan) for of_model in values.values()]


def _slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() and len(x) > 1 else math.nan


def _correlation(x: list[float], y: list[float]) -> float:
    is_defined = np.isfinite(x).all() and np.isfinite(y).all() and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if is_defined else math.nan

"""Robustness against compute (panels c and d of the paper's alpha figure)."""

import math

from undo_jax.report.drawing import BLACK, SHORTFALL, families, starred
from undo_jax.report.numbers import ModelRow, Report
from undo_jax.report.plot import Panel, Plot, PlotPoint, Style, styles


def plot(report: Report) -> Plot | None:
    """Robustness against compute, a mark for each distilled model and a star for data filtering.

    Returns None where no distilled model has both numbers.
    """
    models = distilled(report)
    if not models:
        return None
    star = f"data filtering ({report.oracle})"
    zero = report.unlearned or "its unlearned model"
    title = f"robustness, %  (0 = {zero}, 100 = {report.oracle})"
    panels, points = [], []
    for name, unit in (("steps", "training steps"), ("FLOPs", "FLOPs")):
        spent_on = f"compute, % of the {report.oracle}'s {unit}"
        panels.append(Panel(name, spent_on, title, marks=True, min_retain=report.min_retain))
        points.append(PlotPoint(name, star, None, 100.0, 100.0))
        for m in models:
            robustness = dict(zip(m.seeds, m.robustness.values, strict=True))
            compute = m.compute_steps if name == "steps" else m.compute_flops
            for seed, spent in zip(m.finished_seeds, compute.values, strict=True):
                y = robustness.get(seed, math.nan)
                points.append(PlotPoint(name, m.name, seed, spent, y))
    looks = {**styles(models, report), star: Style(BLACK, mark="star")}
    paths = tuple(_by_alpha(models, family) for family in families(models))
    note = f"hollow: {SHORTFALL} in at least one seed" if any(m.fell_short for m in models) else ""
    return Plot(tuple(panels), looks, tuple(points), paths, note)


def caption(report: Report) -> str:
    """Returns what the trade-off figure shows, exactly."""
    several = any(len(m.seeds) > 1 for m in distilled(report))
    zero = f"P_{report.unlearned or 'unlearned'}"
    return (
        "Robustness against the compute of distillation, in training steps and in FLOPs including "
        "the teacher's forward pass, as % of the oracle's pretraining"
        + (" with the same seed" if report.paired else "")
        + "; unlearning before it is not counted. "
        f"Robustness is (P − {zero}) / (P_oracle − {zero}), P the forget score of "
        f"the strongest attack over all steps, learning rates and attack data, {report.counting}"
        + (". " if report.unlearned else f", {zero} that of the model's unlearned ancestor. ")
        + (
            "Points are means over seeds, bars run from the lowest to the highest seed. "
            if several
            else "One seed. "
        )
        + "The star is data filtering, at (100, 100) by definition. "
        + starred(report, "A hollow marker")
    ).strip()


def distilled(report: Report) -> list[ModelRow]:
    """Returns the models that are compared: distilled, with robustness and compute defined."""
    rows = [m for m in report.models if m.role == "distilled"]
    return [m for m in rows if m.robustness.finite and m.compute_steps.finite]


def _by_alpha(models: list[ModelRow], family: str) -> tuple[str, ...]:
    """Returns the noised students of a family, from the lowest to the highest alpha."""
    noised = [m for m in models if m.family == family and m.alpha is not None]
    return tuple(m.name for m in sorted(noised, key=lambda m: m.alpha or 0.0))

"""Distillation loss of each student (panel a of the paper's oracle-matching figure)."""

import math

from undo_jax.report.drawing import footnote
from undo_jax.report.numbers import ModelRow, Report
from undo_jax.report.plot import Panel, Plot, curve, styles


def plot(report: Report) -> Plot | None:
    """Loss against distillation steps, a curve for each student; None without any."""
    models = [m for m in report.models if m.role == "distilled" and _has_losses(m)]
    if not models:
        return None
    panel = Panel("training_loss", "distillation steps", "distillation loss", log=True)
    points = (p for m in models for p in curve(panel.name, m.name, m.finished_seeds, m.losses))
    return Plot((panel,), styles(models, report), tuple(points), note=footnote(report, models, "*"))


def _has_losses(model: ModelRow) -> bool:
    return any(math.isfinite(spread.mean) and spread.mean > 0 for spread in model.losses.values())


def caption(report: Report) -> str:
    """Returns what the figure of losses shows, exactly."""
    band = "bands run from the lowest to the highest seed" if report.several_seeds else "one seed"
    return (
        "Loss of each student against the steps of its distillation, on a logarithmic scale: each "
        f"point is one batch. Lines are means over the seeds that still train; {band}. A low loss "
        "says how well a student matches its teacher, not how robust it is."
    )

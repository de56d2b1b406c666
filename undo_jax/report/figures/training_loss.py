"""Distillation loss of every student. Redraws panel a of the paper's oracle-matching figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from undo_jax.report.drawing import MUTED, darker, linestyle, palette, shortened, text_width
from undo_jax.report.numbers import Report, Row
from undo_jax.report.series import Panel, Series, curve, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(report: Report) -> Figure | None:
    """Loss against training steps, a line per student; None where nothing was distilled."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    models = _distilled(report)
    if not models:
        return None
    colours = palette(report.models)
    shades = [colours[m.name] for m in models]
    names = {m.name: shortened(m.name) for m in models}
    width = 7.2 + max(0.0, *(text_width(name, 9) - 1.7 for name in names.values()))
    left, right = 0.65 / width, 4.8 / width
    fig = Figure(figsize=(width, 4.3), facecolor="white")
    ax = fig.add_axes((left, 0.165, right - left, 0.725))
    lines = []
    for m in models:
        steps = list(m.losses)
        means = [spread.mean for spread in m.losses.values()]
        if any(len(spread.finite) > 1 for spread in m.losses.values()):
            low, high = ([getattr(s, side) for s in m.losses.values()] for side in ("low", "high"))
            ax.fill_between(steps, low, high, color=colours[m.name], alpha=0.12, linewidth=0)
        alone = shades.count(colours[m.name]) == 1
        style = "-" if alone else linestyle(m, report.models)
        lines += ax.plot(steps, means, color=colours[m.name], linewidth=1.8, linestyle=style)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(0, max(step for m in models for step in m.losses))
    ax.set_xlabel("distillation steps")
    ax.set_title("distillation loss", loc="left", fontsize=10.5)
    ax.spines["left"].set_visible(False)
    ax.tick_params(length=0, which="both")
    fig.legend(
        lines, list(names.values()),
        loc="upper left", bbox_to_anchor=(right, 0.9), frameon=False, fontsize=9,
        labelcolor=[darker(colour) for colour in shades],
    )  # fmt: skip
    fig.text(0.99, 0.022, _footnote(report), ha="right", va="bottom", fontsize=8, color=MUTED)
    return fig


def caption(report: Report) -> str:
    """What the figure of losses shows, exactly."""
    band = "bands run from the lowest to the highest seed" if report.several_seeds else "one seed"
    return (
        "Loss of every student against the steps of its distillation, on a logarithmic scale: each "
        f"point is one batch. Lines are means over the seeds that still train; {band}. A low loss "
        "says how well a student matches its teacher, not how robust it is."
    )


def series(report: Report) -> Series:
    """The numbers of the figure."""
    models = _distilled(report)
    panel = Panel("training_loss", "distillation steps", "distillation loss", log=True)
    points = (p for m in models for p in curve(panel.name, m.name, m.made, m.losses))
    return Series((panel,), styles(models, report), tuple(points))


def _distilled(report: Report) -> list[Row]:
    def has_losses(m: Row) -> bool:
        return any(math.isfinite(spread.mean) and spread.mean > 0 for spread in m.losses.values())

    return [m for m in report.models if m.role == "distilled" and has_losses(m)]


def _footnote(report: Report) -> str:
    return f"{report.seed_counts} seeds" if report.several_seeds else "one seed"

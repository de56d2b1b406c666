"""Panels that the paper's figures are made of. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undo_jax.report.drawing import BLACK, MUTED, darker
from undo_jax.report.numbers import Spread
from undo_jax.report.records import Measure
from undo_jax.report.studies import PaperPoint, Seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spreads = Mapping[Any, Spread]  # by step, the values of all seeds
STAR = "*"
WIDTH, ROW = 3.05, 2.45  # inches of a panel, with its labels


class Look:
    """How a model's line is drawn, and the mark of its point where points stand for models."""

    def __init__(self, colour: str, style: Any = "-", mark: str = ""):
        self.colour, self.style, self.mark = colour, style, mark


def curves_of(points: Sequence[PaperPoint], panel: str, setting: str) -> dict[str, Spreads]:
    """The curves of a panel, by model."""
    found: dict[str, dict[Seed, dict[float, float]]] = {}
    for p in points:
        if (p.panel, p.setting) == (panel, setting):
            found.setdefault(p.model, {}).setdefault(p.seed, {})[p.x] = p.y
    return {model: _spreads(of) for model, of in found.items()}


def _spreads(curves: Mapping[Seed, Mapping[float, float]]) -> Spreads:
    steps = sorted({step for curve in curves.values() for step in curve})
    return {x: Spread(tuple(c.get(x, math.nan) for c in curves.values())) for x in steps}


def figure(rows: int, columns: int, legend_rows: int = 1) -> tuple[Figure, Any]:
    """A figure with panels [rows, columns], and room for a legend below."""
    from matplotlib.figure import Figure

    below = 0.62 + 0.22 * legend_rows
    width, height = WIDTH * columns + 0.3, ROW * rows + below + 0.3
    fig = Figure(figsize=(width, height), facecolor="white")
    axes = fig.subplots(rows, columns, squeeze=False)
    fig.subplots_adjust(
        left=0.62 / width,
        right=1 - 0.12 / width,
        top=1 - 0.42 / height,
        bottom=below / height,
        wspace=0.27,
        hspace=0.42,
    )
    return fig, axes


def draw_curves(ax: Axes, curves: Mapping[str, Spreads], looks: Mapping[str, Look]) -> None:
    """Means over seeds as lines, from the lowest to the highest seed as bands."""
    tint = min(0.13, 0.6 / max(len(curves), 1))  # of bands, which lie over each other
    for z, (model, found) in enumerate(curves.items()):
        steps, look = list(found), looks[model]
        if any(len(spread.finite) > 1 for spread in found.values()):
            low, high = ([getattr(s, side) for s in found.values()] for side in ("low", "high"))
            ax.fill_between(steps, low, high, color=look.colour, alpha=tint, linewidth=0, zorder=2)
        means = [s.mean for s in found.values()]
        ax.plot(steps, means, color=look.colour, linestyle=look.style, linewidth=1.9, zorder=10 + z)
    ax.margins(x=0)
    ax.tick_params(length=0, labelsize=8.5)
    ax.spines["left"].set_visible(False)


def relearning(
    ax: Axes,
    curves: Mapping[str, Spreads],
    looks: Mapping[str, Look],
    measure: Measure,
    text: str,
    otherwise: str = "text has no answers to permute",
) -> None:
    """A panel of scores by relearning step; without curves it says why it is empty."""
    if not curves:
        return empty(ax, otherwise)
    draw_curves(ax, curves, looks)
    score_axis(ax, measure)
    title(ax, text)
    ax.set_xlabel("relearning steps", fontsize=8.5)


def mark(ax: Axes, points: Sequence[PaperPoint], colour: str, shape: str, **more: Any) -> None:
    """A marker at the means of a model's points, with bars from the lowest to the highest seed."""
    x, y = (Spread(tuple(getattr(p, axis) for p in points)) for axis in "xy")
    if y.finite:
        ax.errorbar(
            x.mean, y.mean, xerr=[[x.mean - x.low], [x.high - x.mean]],
            yerr=[[y.mean - y.low], [y.high - y.mean]], fmt=shape, ms=6, color=colour,
            ecolor=colour, elinewidth=1.1, zorder=5, **more,
        )  # fmt: skip


def data_filtering(ax: Axes) -> None:
    """The star at (100, 100): all of the robustness, for all of the compute."""
    ax.plot([100], [100], STAR, ms=13, color=BLACK, zorder=6, clip_on=False)
    ax.tick_params(length=0, labelsize=8.5)


def score_axis(ax: Axes, measure: Measure) -> None:
    """Limits of a score's axis: an accuracy goes from 0 to 1."""
    if measure.higher_is_better and not measure.unit:
        ax.set_ylim(-0.03, 1.03)


def legend(fig: Figure, looks: Mapping[str, Look], columns: int) -> None:
    """One legend below all panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=look.colour, linestyle=look.style, linewidth=1.9, label=name,
            marker=look.mark, ms=8 if look.mark == STAR else 5,
        )
        for name, look in looks.items()
    ]  # fmt: skip
    fig.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=[darker(look.colour) for look in looks.values()],
    )


def title(ax: Axes, text: str) -> None:
    """A panel's title, at its left."""
    ax.set_title(text, loc="left", fontsize=9.5, pad=6)


def empty(ax: Axes, why: str) -> None:
    """A panel with nothing to show, and why."""
    ax.axis("off")
    ax.text(0.5, 0.5, why, ha="center", va="center", fontsize=8.5, color=MUTED, wrap=True)


ORACLE = Look(BLACK, (0, (4, 2.2)))
FILTERING = Look(ORACLE.colour, ORACLE.style, STAR)  # the oracle, where models are points

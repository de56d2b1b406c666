"""Robustness against compute. Redraws panels c and d of the paper's alpha figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from undo_jax.report.drawing import (
    BLACK,
    MUTED,
    SHORTFALL,
    families,
    marker,
    palette,
    starred,
    text_width,
)
from undo_jax.report.numbers import Report, Row, Spread
from undo_jax.report.series import Panel, Point, Series, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(report: Report) -> Figure | None:
    """Robustness against compute of each distilled model; None where there is none to draw."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    models = distilled(report)
    if not models:
        return None
    colours = palette(report.models)
    note = any(m.fell_short for m in models)
    star_label = f"data filtering ({report.oracle})"
    columns = _columns([*(m.name for m in models), star_label])
    rows = -(-(len(models) + 1) // columns)  # rows of the legend
    below = 0.78 + 0.21 * rows + 0.2 * note  # inches under the panels
    height = 0.72 + 2.45 + below
    fig = Figure(figsize=(7.2, height), facecolor="white")
    left, right = fig.subplots(1, 2, sharex=True, sharey=True)
    fig.subplots_adjust(
        left=0.075, right=0.975, top=1 - 0.72 / height, bottom=below / height, wspace=0.13
    )
    _panel(left, models, colours, lambda m: m.compute_steps)
    _panel(right, models, colours, lambda m: m.compute_flops)
    _limits(left, models)
    left.set_title("a   in training steps", loc="left", fontsize=9.5, pad=8)
    right.set_title(
        "b   in FLOPs, with the teacher's forward pass", loc="left", fontsize=9.5, pad=8
    )
    fig.text(0.012, 1 - 0.2 / height, _score_axis(report), va="center", fontsize=10.5)
    fig.text(
        0.525,
        (below - 0.42) / height,
        "distillation compute, % of the oracle's pretraining",
        ha="center",
        va="center",
    )
    handles = [Line2D([], [], ls="", label=m.name, **marker(m, colours[m.name])) for m in models]
    star = Line2D([], [], ls="", marker="*", ms=13, color=BLACK, label=star_label)
    handles.append(star)
    fig.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, (below - 0.55) / height),
        ncols=columns,
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    if note:
        hollow = f"hollow: {SHORTFALL} in at least one seed"
        fig.text(0.99, 0.08 / height, hollow, ha="right", fontsize=8, color=MUTED)
    return fig


def caption(report: Report) -> str:
    """What the trade-off figure shows, exactly."""
    several = any(len(m.seeds) > 1 for m in distilled(report))
    zero = f"P_{report.unlearned or 'unlearned'}"
    return (
        "Robustness against the compute of distillation, (a) in training steps and (b) in FLOPs "
        "including the teacher's forward pass, as % of the oracle's pretraining"
        + (" with the same seed" if report.paired else "")
        + "; unlearning before it is not counted. "
        f"Robustness is (P − {zero}) / (P_oracle − {zero}), P the forget score of "
        "the strongest attack over all steps, learning rates and attack data"
        + (". " if report.unlearned else f", {zero} that of the model's unlearned ancestor. ")
        + (
            "Points are means over seeds, bars run from the lowest to the highest seed. "
            if several
            else "One seed. "
        )
        + "The star is data filtering, at (100, 100) by definition. "
        + starred(report, "A hollow marker")
    ).strip()


def series(report: Report) -> Series:
    """The numbers of the figure, and the star."""
    models, star = distilled(report), f"data filtering ({report.oracle})"
    colours, y = palette(report.models), _score_axis(report)
    steps = Panel("steps", f"compute, % of the {report.oracle}'s training steps", y, marks=True)
    flops = Panel("FLOPs", f"compute, % of the {report.oracle}'s FLOPs", y, marks=True)
    points = []
    for panel, of in ((steps, lambda m: m.compute_steps), (flops, lambda m: m.compute_flops)):
        points.append(Point(panel.name, star, None, 100.0, 100.0))
        for m in models:
            robust = dict(zip(m.seeds, m.robustness.values, strict=True))
            for seed, spent in zip(m.made, of(m).values, strict=True):
                points.append(Point(panel.name, m.name, seed, spent, robust.get(seed, math.nan)))
    shapes = {m.name: "diamond" if m.alpha is None else "circle" for m in models}
    looks = {m.name: Style(colours[m.name], (), shapes[m.name], m.fell_short) for m in models}
    looks[star] = Style(BLACK, mark="star")
    joined = (_by_alpha(models, family) for family in families(models))
    paths = tuple(tuple(m.name for m in some) for some in joined)
    return Series((steps, flops), looks, tuple(points), paths)


def distilled(report: Report) -> tuple[Row, ...]:
    """The models that are compared: distilled, with robustness and compute defined."""
    return tuple(
        m
        for m in report.models
        if m.role == "distilled" and m.robustness.finite and m.compute_steps.finite
    )


def _columns(labels: Sequence[str]) -> int:
    """How many columns of the legend fit the figure, up to five."""
    for columns in range(min(len(labels), 5), 1, -1):
        widths = [text_width(label, 9) for label in labels]
        rows, more = divmod(len(labels), columns)
        lengths = [rows + (i < more) for i in range(columns)]
        starts = [sum(lengths[:i]) for i in range(columns)]
        widest = [max(widths[s : s + n]) for s, n in zip(starts, lengths, strict=True)]
        if sum(widest) + 0.425 * columns <= 7.25:  # with its marker and the space after it
            return columns
    return 1


def _score_axis(report: Report) -> str:
    zero = report.unlearned or "its unlearned model"
    return f"robustness, %  (0 = {zero}, 100 = {report.oracle})"


def _by_alpha(models: Sequence[Row], family: str) -> list[Row]:
    """A family's noised students, from the lowest to the highest alpha."""
    undo = [m for m in models if m.family == family and m.alpha is not None]
    return sorted(undo, key=lambda m: m.alpha or 0.0)


def _panel(
    ax: Axes,
    models: Sequence[Row],
    colours: dict[str, str],
    compute: Callable[[Row], Spread],
) -> None:
    for family in families(models):
        undo = _by_alpha(models, family)
        ax.plot(
            [compute(m).mean for m in undo],
            [m.robustness.mean for m in undo],
            color="#c3c8ce",
            linewidth=1.4,
            zorder=2,
        )
    for m in models:
        x, y, colour = compute(m), m.robustness, colours[m.name]
        ax.errorbar(
            x.mean,
            y.mean,
            xerr=[[x.mean - x.low], [x.high - x.mean]],
            yerr=[[y.mean - y.low], [y.high - y.mean]],
            fmt="none",
            ecolor=colour,
            elinewidth=1.4,
            alpha=0.75,
            zorder=3,
        )
        ax.plot([x.mean], [y.mean], ls="", zorder=5, **marker(m, colour))
    ax.plot([100], [100], "*", ms=16, color=BLACK, zorder=6, clip_on=False)
    ax.tick_params(length=0, pad=6)


def _limits(ax: Axes, models: Sequence[Row]) -> None:
    """Limits of both panels: room for every bar, and for the star at (100, 100)."""
    from matplotlib.ticker import MaxNLocator

    spent = [s.high for m in models for s in (m.compute_steps, m.compute_flops) if s.finite]
    ax.set_xlim(0, 1.06 * max(100.0, *spent))
    low = min(0.0, *(m.robustness.low for m in models))
    high = max(100.0, *(m.robustness.high for m in models))
    ax.set_ylim(low - 0.04 * (high - low), high + 0.07 * (high - low))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))

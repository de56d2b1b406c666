"""Draws a `Plot` with matplotlib, which is imported only then."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.drawing import MUTED, darker, shortened, text_width
from undo_jax.report.panels import STAR, Look
from undo_jax.report.plot import Panel, Plot, Style, spreads
from undo_jax.report.statistics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = 3  # panels in a row that are still readable on a page
TITLE = 36  # letters above a panel, of which there are two lines at most
MARKS = {"circle": "o", "diamond": "D", "star": STAR}
Curves = Mapping[str, panels.Spreads]  # by model


def draw(plot: Plot) -> Figure:
    """Draws a plot: a single panel has its names at the ends of lines, several share a legend."""
    if len(plot.panels) == 1 and not plot.panels[0].marks:
        return _single(plot, plot.panels[0])
    # The legend lists the models in as many columns as fit below the panels.
    columns = min(len(plot.panels), BESIDE)
    rows = -(-len(plot.panels) // columns)
    looks = {name: _look(style, plot.panels[0].marks) for name, style in plot.styles.items()}
    labels = {name: _label(name, plot.styles[name], plot.panels[0].marks) for name in looks}
    width = panels.WIDTH * columns + 0.3
    legend_columns = panels.legend_columns([*labels.values()], width)
    legend_rows = -(-len(looks) // legend_columns) + bool(plot.note)
    fig, axes = panels.figure(rows, columns, legend_rows)
    height = fig.get_figheight()
    panels.legend(
        fig,
        {labels[name]: look for name, look in looks.items()},
        legend_columns,
        bottom=0.2 * bool(plot.note) / height,
    )
    if plot.note:
        fig.text(0.99, 0.08 / height, plot.note, ha="right", fontsize=8, color=MUTED)
    # A title that all panels have is written once.
    titles = list(dict.fromkeys(panel.y for panel in plot.panels))
    if len(titles) == 1:
        fig.text(0.012, 1 - 0.2 / height, titles[0], va="center", fontsize=10.5)
    for ax, panel in zip(axes.flat, plot.panels, strict=False):
        if panel.marks:
            _draw_marks(ax, plot, panel, looks)
        else:
            _draw_curves(ax, panel, _curves(plot, panel), looks)
        if len(titles) > 1:
            title = textwrap.shorten(panel.y, 2 * TITLE, placeholder="…")
            panels.title(ax, textwrap.fill(title, TITLE))
        ax.set_xlabel(panel.x, fontsize=8.5)
    for ax in axes.flat[len(plot.panels) :]:
        ax.axis("off")
    return fig


def _look(style: Style, marks: bool) -> Look:
    line = (0, style.dashes) if style.dashes else "-"
    if marks:
        return Look(style.colour, "", MARKS[style.mark], style.hollow)
    return Look(style.colour, line)


def _label(name: str, style: Style, marks: bool) -> str:
    """Returns a model's name as drawn; a line of a model that fell short has a star."""
    return shortened(name) + " *" * (style.hollow and not marks)


def _curves(plot: Plot, panel: Panel) -> Curves:
    curves = {name: spreads(points) for name, points in plot.by_model(panel).items()}
    if not panel.log:
        return curves
    return {name: {x: s for x, s in c.items() if s.low > 0} for name, c in curves.items()}


def _draw_marks(ax: Axes, plot: Plot, panel: Panel, looks: Mapping[str, Look]) -> None:
    """Draws a mark at each model's means, with bars from the lowest to the highest seed."""
    models = plot.by_model(panel)
    x = {name: Spread(tuple(p.x for p in points)) for name, points in models.items()}
    y = {name: Spread(tuple(p.y for p in points)) for name, points in models.items()}
    for path in plot.paths:
        places = [(x[name].mean, y[name].mean) for name in path]
        ax.plot(*zip(*places, strict=True), color="#c3c8ce", linewidth=1.4, zorder=2)
    for name in sorted(models, key=lambda name: looks[name].mark == STAR):  # stars last
        look = looks[name]
        panels.mark(ax, models[name], look, size=12 if look.mark == STAR else 7)
    ax.tick_params(length=0, labelsize=8.5)
    # All panels of a plot have the same limits, which leave room for every bar and star.
    marked = [point for point in plot.points if point.panel in {p.name for p in plot.panels}]
    far, whole = Spread(tuple(p.x for p in marked)).high, Spread(tuple(p.y for p in marked))
    low = min(0.0, whole.low)
    room = whole.high - low
    ax.set_xlim(0, 1.06 * far)
    ax.set_ylim(low - 0.04 * room, whole.high + 0.07 * room)


def _draw_curves(ax: Axes, panel: Panel, curves: Curves, looks: Mapping[str, Look]) -> None:
    """Draws the curves of a panel, and sets its axes."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    panels.draw_curves(ax, curves, looks)
    values = [spread for curve in curves.values() for spread in curve.values()]
    low, high = min(s.low for s in values), max(s.high for s in values)
    if panel.log:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif panel.limits:
        ax.set_ylim(min(panel.limits[0], low) - 0.03, max(panel.limits[1], high) + 0.03)
    else:
        pad = 0.04 * (high - low) or 0.05
        ax.set_ylim(low - pad, high + pad)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_xlim(0, max(1, *(step for curve in curves.values() for step in curve)))
    ax.tick_params(which="both", length=0)
    ax.grid(axis="x", visible=False)


# ---- a single panel ----


def _single(plot: Plot, panel: Panel) -> Figure:
    """Draws a wide panel of curves, with the names of models at the ends of their lines."""
    from matplotlib.figure import Figure

    curves = _curves(plot, panel)
    size, gap = (9.5, 14.5) if len(curves) <= 15 else (7.5, 10.5)  # points
    labels = {name: _label(name, plot.styles[name], marks=False) for name in curves}
    margin = 0.55 + 1.1 * max(text_width(label, size) for label in labels.values())
    width = 7.2 + max(margin - 3.0, 0.0)
    height = max(4.3, len(curves) * gap / 72 + 1.2)  # room for the labels
    fig = Figure(figsize=(width, height), facecolor="white")
    ax = fig.add_axes(
        (0.55 / width, 0.7 / height, 1 - (0.55 + margin) / width, (height - 1.2) / height)
    )
    looks = {name: _look(plot.styles[name], marks=False) for name in curves}
    _draw_curves(ax, panel, curves, looks)
    ax.set_xlabel(panel.x)
    _label_ends(ax, curves, labels, looks, size, gap)
    fig.text(0.012, 1 - 0.24 / height, panel.y, va="center", fontsize=10.5)
    fig.text(0.99, 0.09 / height, plot.note, ha="right", va="bottom", fontsize=8, color=MUTED)
    return fig


def _label_ends(
    ax: Axes,
    curves: Curves,
    labels: Mapping[str, str],
    looks: Mapping[str, Look],
    size: float,
    gap: float,
) -> None:
    """Writes each model's name beside the end of its line, moved apart where lines meet."""
    inches = ax.get_position().height * ax.figure.get_figheight()  # pyright: ignore[reportAttributeAccessIssue]
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = {}
    for name, curve in curves.items():
        x, y = to_axes.transform((list(curve)[-1], list(curve.values())[-1].mean))
        ends[name] = float(x), float(y)
    # Lines that end within 2 % of the axis are ordered by their means.
    means = {name: sum(s.mean for s in c.values()) / len(c) for name, c in curves.items()}
    order = sorted(curves, key=lambda name: (round(ends[name][1] / 0.02), means[name]))
    heights = spread_out([ends[name][1] for name in order], gap / 72 / inches, 0.0, 1.0)
    for name, height in zip(order, heights, strict=True):
        (x, y), colour = ends[name], looks[name].colour
        across = {"transform": ax.transAxes, "color": colour, "clip_on": False}
        ax.plot([x], [y], "o", ms=5, zorder=40, **across)
        ax.plot([x, 1.035], [y, height], linewidth=0.9 if x > 0.97 else 0.3, zorder=1, **across)
        ax.text(
            1.045, height, labels[name], va="center", fontweight="bold", fontsize=size,
            transform=ax.transAxes, color=darker(colour),
        )  # fmt: skip


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves ascending places at least `gap` apart, close to where they were, inside [low, high]."""
    groups: list[tuple[float, int]] = []  # (sum of places, members), where the gap is zero
    for i, y in enumerate(places):
        groups.append((y - i * gap, 1))
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1] = (groups[-1][0] + total, groups[-1][1] + count)
    flat = [total / count for total, count in groups for _ in range(count)]
    room = high - low - gap * (len(places) - 1)
    return [min(max(y, low), low + max(room, 0)) + i * gap for i, y in enumerate(flat)]

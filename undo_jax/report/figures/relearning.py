"""Forget score under relearning. Redraws panels a and b of the paper's alpha figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from undo_jax.report.drawing import (
    MUTED,
    SHORTFALL,
    darker,
    linestyle,
    palette,
    shortened,
    starred,
    text_width,
)
from undo_jax.report.numbers import Report, Row, Spread
from undo_jax.report.series import Panel, Series, curve, limits, logarithmic, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STATISTICS: tuple[Callable[[Spread], float], ...] = (
    lambda s: s.low,
    lambda s: s.mean,
    lambda s: s.high,
)


def draw(report: Report) -> Figure:
    """Forget score of the strongest attack at each relearning step, a line per model."""
    from matplotlib.figure import Figure

    models = report.attacked
    colours = palette(report.models)
    names = {m.name: shortened(m.name) + (" *" if m.fell_short else "") for m in models}
    wanted = 0.42 + 0.083 * max(map(len, names.values()))  # inches for the labels
    margin, width = min(wanted, 3.0), 7.2
    if wanted > margin:  # measured only if names are long
        margin = 0.55 + 1.1 * max(text_width(name, _size(models)) for name in names.values())
        width += max(margin - 3.0, 0.0)
    height = 4.3 + max(len(models) * _gap(models) / 72 - 0.725 * 4.3, 0.0)  # room for the labels
    fig = Figure(figsize=(width, height), facecolor="white")
    panel = 0.165 * 4.3 / height, (height - 0.275 * 4.3) / height  # bottom and height
    ax = fig.add_axes((0.55 / width, panel[0], 1 - (0.55 + margin) / width, panel[1]))
    for z, m in enumerate(models):
        steps, colour = list(m.curve), colours[m.name]
        low, mean, high = ([pick(s) for s in m.curve.values()] for pick in _STATISTICS)
        if len(m.seeds) > 1:
            ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)
        ax.plot(
            steps,
            mean,
            color=colour,
            linewidth=2.2,
            linestyle=linestyle(m, report.models),
            dash_capstyle="round",
            solid_capstyle="round",
            zorder=10 + z,
        )
    _frame(ax, report)
    _label_ends(ax, models, names, colours)
    fig.text(
        0.012, 1 - 0.055 * 4.3 / height, _score_axis(report), ha="left", va="center", fontsize=10.5
    )
    fig.text(
        0.99,
        0.022 * 4.3 / height,
        _footnote(report),
        ha="right",
        va="bottom",
        fontsize=8,
        color=MUTED,
    )
    return fig


def caption(report: Report) -> str:
    """What the relearning figure shows, exactly."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    band = "Lines are means over seeds, bands run from the lowest to the highest seed. "
    label = report.forget.axis[:1].upper() + report.forget.axis[1:]
    return (
        f"{label} against the steps of a relearning attack. "
        f"At each step the strongest attack counts, that is the {worst} score over all learning "
        "rates and attack data, taken for each seed. "
        + (band if report.several_seeds else "One seed, so no bands. ")
        + starred(report, "A name with *")
    ).strip()


def series(report: Report) -> Series:
    """The numbers of the figure."""
    measure = report.forget
    panel = Panel(
        "relearning",
        "relearning steps",
        _score_axis(report),
        log=logarithmic(measure),
        limits=limits(measure),
    )
    points = (p for m in report.attacked for p in curve(panel.name, m.name, m.seeds, m.curve))
    return Series((panel,), styles(report.attacked, report), tuple(points))


def _frame(ax: Axes, report: Report) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    spreads = [s for m in report.attacked for s in m.curve.values()]
    low, high = min(s.low for s in spreads), max(s.high for s in spreads)
    last = max(step for m in report.attacked for step in m.curve)
    pad = 0.04 * (high - low) or 0.05
    if report.forget.higher_is_better and low >= 0 and high <= 1:  # an accuracy
        low, high, pad = 0.0, 1.0, 0.03
    ax.set_ylim(low - pad, high + pad)
    ax.set_xlim(0, max(last, 1))
    ax.margins(0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.grid(axis="x", visible=False)
    ax.tick_params(length=0, pad=6)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("relearning steps", labelpad=5)


def _label_ends(
    ax: Axes,
    models: Sequence[Row],
    names: dict[str, str],
    colours: dict[str, str],
) -> None:
    """Write each model's name beside the end of its line, moved apart where lines meet."""
    bottom, top = ax.get_ylim()
    height = ax.get_window_extent().height * 72 / ax.figure.dpi  # points
    last = ax.get_xlim()[1]
    ends = {m.name: list(m.curve.values())[-1].mean for m in models}
    # Lines that end within 2 % of the axis are ordered by their means.
    tie = 0.02 * (top - bottom)
    areas = {m.name: sum(s.mean for s in m.curve.values()) / len(m.curve) for m in models}
    order = sorted(models, key=lambda m: (round(ends[m.name] / tie), areas[m.name]))
    gap = _gap(models) * (top - bottom) / height
    placed = spread_out([ends[m.name] for m in order], gap, bottom, top)
    for m, y in zip(order, placed, strict=True):
        x, end, colour = list(m.curve)[-1] / last, ends[m.name], colours[m.name]
        across = {"transform": ax.get_yaxis_transform(), "color": colour, "clip_on": False}
        ax.plot([x], [end], "o", ms=5, zorder=40, **across)
        ax.plot([x, 1.035], [end, y], linewidth=0.9, zorder=1, **across)
        ax.text(
            1.045,
            y,
            names[m.name],
            transform=ax.get_yaxis_transform(),
            va="center",
            color=darker(colour),
            fontweight="bold",
            fontsize=_size(models),
        )


def _gap(models: Sequence[Row]) -> float:
    """Distance between the names of models, in points."""
    return 14.5 if len(models) <= 15 else 10.5


def _size(models: Sequence[Row]) -> float:
    """Font size of a name, in points."""
    return 9.5 if len(models) <= 15 else 7.5


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions at least gap apart, close to where they were, inside [low, high]."""
    groups: list[tuple[float, int]] = []  # (sum of wanted centres, members)
    for i, y in enumerate(wanted):
        groups.append((y - i * gap, 1))  # in coordinates where the gap is zero
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1] = (groups[-1][0] + total, groups[-1][1] + count)
    flat = [total / count for total, count in groups for _ in range(count)]
    room = high - low - gap * (len(wanted) - 1)
    return [min(max(y, low), low + max(room, 0)) + i * gap for i, y in enumerate(flat)]


def _score_axis(report: Report) -> str:
    hint = "higher" if report.forget.higher_is_better else "lower"
    return f"{report.forget.axis}, strongest attack  ({hint} = more relearned)"


def _footnote(report: Report) -> str:
    told = f"mean of {report.seed_counts} seeds, band: min–max"
    parts = [told if report.several_seeds else "one seed"]
    if any(m.fell_short for m in report.attacked):
        parts.append(f"* {SHORTFALL}")
    return "  ·  ".join(reversed(parts))

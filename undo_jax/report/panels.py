"""Parts of which figures are drawn. Matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_jax.report.drawing import BLACK, MUTED, darker, text_width
from undo_jax.report.records import Measure
from undo_jax.report.statistics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spreads = Mapping[Any, Spread]  # by step, the values of all seeds
STAR, CROSS = "*", "x"  # a cross has no bars
WIDTH, ROW = 3.05, 2.45  # inches of a panel, with its labels


@dataclass(frozen=True)
class Look:
    """How matplotlib draws a model's line, and its mark where points stand for models."""

    colour: str
    style: Any = "-"
    mark: str = ""
    hollow: bool = False


def figure(rows: int, columns: int, legend_rows: int = 1) -> tuple[Figure, Any]:
    """Returns a figure, its axes [rows, columns], and leaves room for a legend below."""
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
    """Draws means over seeds as lines, from the lowest to the highest seed as bands."""
    tint = min(0.13, 0.6 / max(len(curves), 1))  # of bands, which lie over each other
    for z, (model, curve) in enumerate(curves.items()):
        steps, look = list(curve), looks[model]
        if any(len(spread.finite) > 1 for spread in curve.values()):
            low, high = [s.low for s in curve.values()], [s.high for s in curve.values()]
            ax.fill_between(steps, low, high, color=look.colour, alpha=tint, linewidth=0, zorder=2)
        means = [s.mean for s in curve.values()]
        ax.plot(steps, means, color=look.colour, linestyle=look.style, linewidth=1.9, zorder=10 + z)
    ax.margins(x=0)
    ax.tick_params(length=0, labelsize=8.5)
    ax.spines["left"].set_visible(False)


def mark(ax: Axes, points: Sequence[Any], look: Look, size: float = 6) -> None:
    """Draws a marker at the means of a model's points, and bars over the range of seeds."""
    x, y = (Spread(tuple(getattr(p, axis) for p in points)) for axis in "xy")
    if y.finite and look.mark == CROSS:
        ax.plot(x.mean, y.mean, CROSS, ms=5, color=look.colour, zorder=4)
    elif y.finite:
        ax.errorbar(
            x.mean, y.mean, xerr=[[x.mean - x.low], [x.high - x.mean]],
            yerr=[[y.mean - y.low], [y.high - y.mean]], fmt=look.mark, color=look.colour,
            ecolor=look.colour, elinewidth=1.1, zorder=5, ms=size,
            markerfacecolor="white" if look.hollow else look.colour,
        )  # fmt: skip


def data_filtering(ax: Axes) -> None:
    """Draws the star at (100, 100): all of the robustness, for all of the compute."""
    ax.plot([100], [100], STAR, ms=13, color=BLACK, zorder=6, clip_on=False)
    ax.tick_params(length=0, labelsize=8.5)


def score_axis(ax: Axes, measure: Measure) -> None:
    """Sets the limits of a score's axis: an accuracy goes from 0 to 1."""
    if measure.higher_is_better and not measure.unit:
        ax.set_ylim(-0.03, 1.03)


def loss_axis(ax: Axes) -> None:
    """Makes a loss's axis logarithmic, with numbers also within a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def legend_columns(labels: Sequence[str], width: float, most: int = 5) -> int:
    """Returns how many columns of a legend fit a width in inches, up to `most`."""
    widths = [text_width(label, 8.5) for label in labels]
    for columns in range(min(len(labels), most), 1, -1):
        rows, more = divmod(len(labels), columns)
        lengths = [rows + (i < more) for i in range(columns)]
        starts = [sum(lengths[:i]) for i in range(columns)]
        widest = [max(widths[s : s + n]) for s, n in zip(starts, lengths, strict=True)]
        if sum(widest) + 0.6 * columns <= width:  # with a handle and the space after it
            return columns
    return 1


def legend(fig: Figure, looks: Mapping[str, Look], columns: int, bottom: float = 0.0) -> None:
    """Draws one legend below all panels; `bottom` is a fraction of the figure's height."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=look.colour, linestyle=look.style, linewidth=1.9, label=name,
            marker=look.mark, ms=8 if look.mark == STAR else 5,
            markerfacecolor="white" if look.hollow else look.colour,
        )
        for name, look in looks.items()
    ]  # fmt: skip
    fig.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=[darker(look.colour) for look in looks.values()],
    )


def title(ax: Axes, text: str) -> None:
    """Writes a panel's title, at its left."""
    ax.set_title(text, loc="left", fontsize=9.5, pad=6)


def empty(ax: Axes, reason: str) -> None:
    """Writes into an empty panel why it shows nothing."""
    ax.axis("off")
    ax.text(0.5, 0.5, reason, ha="center", va="center", fontsize=8.5, color=MUTED, wrap=True)


ORACLE = Look(BLACK, (0, (4, 2.2)))
FILTERING = Look(ORACLE.colour, ORACLE.style, STAR)  # the oracle, where models are points

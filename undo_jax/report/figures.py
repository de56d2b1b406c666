"""The two figures: forget score under relearning, and robustness against compute.

Redraws panels a-d of the paper's alpha figure. Matplotlib is imported where it draws, not before.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from undo_jax.report.read import DISTILLED, ORACLE, UNLEARNED, Model, Report, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2328", "#6b7280", "#e3e5e8"
WARM, PURPLE, BLACK, GREY = "#d1432f", "#8a4fa3", "#111111", "#8b8f96"
RAMP = ("#57b597", "#2b8fa3", "#24397a")  # low to high alpha
OTHERS = ("#c98a1b", "#a86b4c", "#7a7f35")
SHORTFALL = "did not recover the teacher's retain score"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#9aa0a6",
    "ytick.color": "#9aa0a6",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": True,
}


# ---- relearning curves ----


def relearning(report: Report) -> Figure:
    """Forget score of the strongest attack at each relearning step, a line per model."""
    from matplotlib.figure import Figure

    models = report.attacked
    colours = palette(report.models)
    names = {m.name: m.name + (" *" if m.fell_short else "") for m in models}
    margin = min(0.42 + 0.083 * max(map(len, names.values())), 3.0)  # inches for the labels
    fig = Figure(figsize=(7.2, 4.3), facecolor="white")
    ax = fig.add_axes((0.55 / 7.2, 0.165, 1 - (0.55 + margin) / 7.2, 0.725))
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
            linestyle=_LINESTYLES.get(m.name, "-"),
            dash_capstyle="round",
            solid_capstyle="round",
            zorder=10 + z,
        )
    _frame(ax, report)
    _label_ends(ax, models, names, colours)
    fig.text(0.012, 0.945, _score_axis(report), ha="left", va="center", fontsize=10.5)
    fig.text(0.99, 0.022, _footnote(report), ha="right", va="bottom", fontsize=8, color=MUTED)
    return fig


def relearning_caption(report: Report) -> str:
    """What the relearning figure shows, exactly."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    band = "Lines are means over seeds, bands run from the lowest to the highest seed. "
    label = report.forget.label[:1].upper() + report.forget.label[1:]
    return (
        f"{label} against the steps of a relearning attack. "
        f"At each step the strongest attack counts, that is the {worst} score over all learning "
        "rates and attack data, taken for each seed. "
        + (band if any(len(m.seeds) > 1 for m in report.attacked) else "One seed, so no bands. ")
        + _starred(report, "A name with *")
    ).strip()


_STATISTICS: tuple[Callable[[Spread], float], ...] = (
    lambda s: s.low,
    lambda s: s.mean,
    lambda s: s.high,
)
_LINESTYLES = {
    ORACLE: (0, (4, 2.2)),
    DISTILLED: (0, (7, 1.8, 1.2, 1.8)),
    "base": (0, (1, 1.8)),
}


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
    models: Sequence[Model],
    names: dict[str, str],
    colours: dict[str, str],
) -> None:
    """Write each model's name beside the end of its line, moved apart where lines meet."""
    bottom, top = ax.get_ylim()
    height = ax.get_window_extent().height * 72 / ax.figure.dpi  # points
    last = ax.get_xlim()[1]
    ends = {m.name: list(m.curve.values())[-1].mean for m in models}
    # Lines that end within 2 % of the axis keep the order in which they got there.
    tie = 0.02 * (top - bottom)
    areas = {m.name: sum(s.mean for s in m.curve.values()) / len(m.curve) for m in models}
    order = sorted(models, key=lambda m: (round(ends[m.name] / tie), areas[m.name]))
    gap = 14.5 * (top - bottom) / height
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
            color=_darker(colour),
            fontweight="bold",
            fontsize=9.5,
        )


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
    return f"{report.forget.label}, strongest attack  ({hint} = more relearned)"


def _footnote(report: Report) -> str:
    counts = sorted({len(m.seeds) for m in report.attacked})
    number = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    parts = ["one seed" if counts == [1] else f"mean of {number} seeds, band: min–max"]
    if any(m.fell_short for m in report.attacked):
        parts.append(f"* {SHORTFALL}")
    return "  ·  ".join(reversed(parts))


# ---- robustness against compute ----


def tradeoff(report: Report) -> Figure | None:
    """Robustness against compute of each distilled model; None where there is none to draw."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    models = distilled(report)
    if not models:
        return None
    colours = palette(report.models)
    note = any(m.fell_short for m in models)
    rows = -(-(len(models) + 1) // 5)  # of the legend
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
    title = "robustness, %  (0 = unlearn-only, 100 = oracle)"
    fig.text(0.012, 1 - 0.2 / height, title, va="center", fontsize=10.5)
    fig.text(
        0.525,
        (below - 0.42) / height,
        "distillation compute, % of the oracle's pretraining",
        ha="center",
        va="center",
    )
    handles = [Line2D([], [], ls="", label=m.name, **_marker(m, colours[m.name])) for m in models]
    star = Line2D([], [], ls="", marker="*", ms=13, color=BLACK, label="data filtering (oracle)")
    handles.append(star)
    fig.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, (below - 0.55) / height),
        ncols=min(len(handles), 5),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    if note:
        hollow = f"hollow: {SHORTFALL} in at least one seed"
        fig.text(0.99, 0.08 / height, hollow, ha="right", fontsize=8, color=MUTED)
    return fig


def tradeoff_caption(report: Report) -> str:
    """What the trade-off figure shows, exactly."""
    several = any(len(m.seeds) > 1 for m in distilled(report))
    return (
        "Robustness against the compute of distillation, (a) in training steps and (b) in FLOPs "
        "including the teacher's forward pass, as % of the oracle's pretraining with the same "
        "seed; unlearning before it is not counted. "
        "Robustness is (P − P_unlearn-only) / (P_oracle − P_unlearn-only), P the forget score of "
        "the strongest attack over all steps, learning rates and attack data. "
        + (
            "Points are means over seeds, bars run from the lowest to the highest seed. "
            if several
            else "One seed. "
        )
        + "The star is data filtering, at (100, 100) by definition. "
        + _starred(report, "A hollow marker")
    ).strip()


def distilled(report: Report) -> tuple[Model, ...]:
    """The models the trade-off compares: distilled, with robustness and compute defined."""
    return tuple(
        m for m in report.models if m.recovered and m.robustness.finite and m.compute_steps.finite
    )


def _panel(
    ax: Axes,
    models: Sequence[Model],
    colours: dict[str, str],
    compute: Callable[[Model], Spread],
) -> None:
    undo = [m for m in models if m.name != DISTILLED]
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
        ax.plot([x.mean], [y.mean], ls="", zorder=5, **_marker(m, colour))
    ax.plot([100], [100], "*", ms=16, color=BLACK, zorder=6, clip_on=False)
    ax.tick_params(length=0, pad=6)


def _limits(ax: Axes, models: Sequence[Model]) -> None:
    """Limits of both panels: room for every bar, and for the star at (100, 100)."""
    from matplotlib.ticker import MaxNLocator

    spent = [s.high for m in models for s in (m.compute_steps, m.compute_flops) if s.finite]
    ax.set_xlim(0, 1.06 * max(100.0, *spent))
    low = min(0.0, *(m.robustness.low for m in models))
    high = max(100.0, *(m.robustness.high for m in models))
    ax.set_ylim(low - 0.04 * (high - low), high + 0.07 * (high - low))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _marker(model: Model, colour: str) -> dict[str, Any]:
    return {
        "marker": "D" if model.name == DISTILLED else "o",
        "markersize": 7.5 if model.name == DISTILLED else 8.5,
        "markerfacecolor": "white" if model.fell_short else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.8,
    }


# ---- shared ----


def palette(models: Sequence[Model]) -> dict[str, str]:
    """A colour per model: fixed by role, and from light to dark by rank of alpha."""
    fixed = {UNLEARNED: WARM, DISTILLED: PURPLE, ORACLE: BLACK, "base": GREY}
    rest = [m for m in models if m.name not in fixed]
    undo = [m.name for m in rest if m.alpha is not None]
    others = [m.name for m in rest if m.alpha is None]
    # One alpha alone takes the middle of the ramp.
    places = [(i + 0.5 if len(undo) == 1 else i) / max(len(undo) - 1, 1) for i in range(len(undo))]
    return (
        fixed
        | {name: _ramp(place) for name, place in zip(undo, places, strict=True)}
        | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    )


def _ramp(place: float) -> str:
    """Colour at place in [0, 1] along RAMP."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("undo", RAMP)(place))


def _darker(colour: str) -> str:
    """The same hue with enough contrast for text on white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(colour)
    return to_hex((0.8 * red, 0.8 * green, 0.8 * blue))


def _starred(report: Report, mark: str) -> str:
    short = any(m.fell_short for m in report.attacked)
    return f"{mark}: {SHORTFALL} in at least one seed." if short else ""


def render(figure: Callable[[Report], Figure | None], report: Report) -> dict[str, bytes]:
    """The figure as {"svg": ..., "png": ...}, byte-identical for the same report."""
    name = figure.__name__
    with _style(name):
        fig = figure(report)
        if fig is None:
            return {}
        svg, png = io.BytesIO(), io.BytesIO()
        blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(svg, format="svg", metadata=blank)
        fig.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Our style over matplotlib's defaults, whatever the user's own style is."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in STYLE.items():
            matplotlib.rcParams[key] = value
        matplotlib.rcParams["svg.hashsalt"] = salt
        yield

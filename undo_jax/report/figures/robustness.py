"""Worst score of each attack on each model, as a heat map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from undo_jax.report.attack_results import AttackResult, attack_results
from undo_jax.report.card_tables import ordered
from undo_jax.report.drawing import INK, MUTED, WARM, shade, shortened, text_width
from undo_jax.report.numbers import AttackLine, Report
from undo_jax.report.plot import limits
from undo_jax.report.tables import NONE, attack_name, score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAMP = ("#fdf6f3", "#f0b7a4", WARM, "#6d1610")  # from nothing to everything
DARK = 0.55  # of the ramp: text on it is white
CELL = 0.56, 0.25  # inches
SIZE = 8  # points


def draw(report: Report) -> Figure | None:
    """Draws the mean worst score of each attack on each model; None for a single attack."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    models, attacks = report.attacked, _attacks(report)
    if len(attacks) < 2:
        return None
    # Sizes in inches: labels at the left and above, then the cells; controls stand apart.
    names, labels = (
        [shortened(m.name) for m in models],
        [attack_name(shortened(a.attack), a.control) for a in attacks],
    )
    left, top = (0.2 + max(text_width(n, SIZE) for n in texts) for texts in (labels, names))
    gap = 0.5 * (0 < sum(a.control for a in attacks) < len(attacks))  # in cells
    rows = [i + gap * attack.control for i, attack in enumerate(attacks)]
    width, height = CELL[0] * len(models), CELL[1] * (len(attacks) + gap)
    full_width, full_height = max(left + width + 0.55 * top + 0.1, 7.2), 0.7 * top + height + 0.35
    fig = Figure(figsize=(full_width, full_height), facecolor="white")
    ax = fig.add_axes(
        (left / full_width, 0.3 / full_height, width / full_width, height / full_height)
    )
    # A cell for each attack on each model, and a frame around the strongest.
    strongest = [
        next((a for a in ordered(m) if not a.control and a.worst.finite), None) for m in models
    ]
    for y, attack in zip(rows, attacks, strict=True):
        key = attack.attack, attack.control
        for j, model in enumerate(models):
            line = next((a for a in model.attacks if (a.attack, a.control) == key), None)
            if line is None:
                continue
            place = _place(line, report)
            colour = "white" if place > DARK else INK
            text = score(line.worst.mean) if line.worst.finite else NONE
            ax.add_patch(Rectangle((j, y), 1, 1, facecolor=shade(place, RAMP), edgecolor="white"))
            ax.text(j + 0.5, y + 0.53, text, ha="center", va="center", fontsize=7.5, color=colour)
            if line is strongest[j]:
                ax.add_patch(
                    Rectangle((j, y), 1, 1, fill=False, edgecolor=INK, linewidth=1.6, zorder=5)
                )
    ax.set(xlim=(0, len(models)), ylim=(len(attacks) + gap, 0))
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.xaxis.tick_top()
    columns = [j + 0.5 for j in range(len(models))]
    ax.set_xticks(columns, names, rotation=40, ha="left", fontsize=SIZE)
    ax.set_yticks([y + 0.5 for y in rows], labels, fontsize=SIZE)
    ax.tick_params(length=0, pad=3)
    note = f"{report.seed_counts} seeds" if report.several_seeds else "one seed"
    fig.text(0.01, 0.08 / full_height, note, fontsize=7.5, color=MUTED)
    return fig


def caption(report: Report) -> str:
    """Returns what the heat map shows, exactly."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    over = ", mean over seeds" if report.several_seeds else ""
    text = (
        f"The {worst} {report.forget.axis} at any step, learning rate and setting of each attack"
        f"{over}, {report.counting}; the more a cell stands out, the more is recovered. "
        "Framed: the strongest of a model. "
    )
    if any(a.control for a in _attacks(report)):
        text += (
            "Controls, below, never count as the strongest attack, and may have their own metrics. "
        )
    return text + "The file of numbers has each seed, and how soon half was recovered."


def rows(report: Report) -> list[AttackResult]:
    """Returns a row for each attack on each model and seed."""
    return attack_results(report)


def _attacks(report: Report) -> list[AttackLine]:
    """Returns each attack once, in the order of the experiment; controls last."""
    attacks = {(a.attack, a.control): a for m in report.attacked for a in m.attacks}
    return sorted(attacks.values(), key=lambda a: a.control)


def _place(line: AttackLine, report: Report) -> float:
    """Returns where a score is along the ramp: an accuracy, or its place between the extremes."""
    if not line.worst.finite:
        return 0.0
    if (ends := limits(line.measure)) is None:
        lines = [a for m in report.attacked for a in m.attacks]
        means = [a.worst.mean for a in lines if a.measure.name == line.measure.name]
        finite = sorted(filter(math.isfinite, means), reverse=not line.measure.higher_is_better)
        ends = finite[0], finite[-1]
    low, high = ends
    return min(max((line.worst.mean - low) / (high - low), 0.0), 1.0) if low != high else 0.0

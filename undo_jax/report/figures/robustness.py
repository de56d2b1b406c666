"""What each attack brings back of each model at its worst: a heat map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from undo_jax.report.card_tables import ordered
from undo_jax.report.drawing import INK, MUTED, WARM, shade, shortened, text_width
from undo_jax.report.numbers import Attacked, Report, Row
from undo_jax.report.series import limits
from undo_jax.report.tables import NONE, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAMP = ("#fdf6f3", "#f0b7a4", WARM, "#6d1610")  # from nothing to everything
DARK = 0.55  # of the ramp: text on it is white
CELL = 0.56, 0.25  # inches
SIZE = 8  # points


class Result(NamedTuple):
    """A row of the CSV file: an attack on a model with one seed; empty where undefined."""

    model: str
    seed: int | None
    attack: str
    control: bool
    metric: str
    trials: int
    worst: float | None
    retain: float | None
    steps_to_half: float | None  # infinite where it is not reached, as are examples
    examples_to_half: float | None
    area: float | None


def draw(report: Report) -> Figure | None:
    """Mean worst score of each attack on each model; None for a single attack."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    models, attacks = report.attacked, _attacks(report)
    if len(attacks) < 2:
        return None
    names, labels = [shortened(m.name) for m in models], [_label(a) for a in attacks]
    left, top = (0.2 + max(text_width(n, SIZE) for n in some) for some in (labels, names))
    gap = 0.5 * (0 < sum(a.control for a in attacks) < len(attacks))  # before controls, in cells
    width, height = CELL[0] * len(models), CELL[1] * (len(attacks) + gap)
    whole = max(left + width + 0.55 * top + 0.1, 7.2), 0.7 * top + height + 0.35
    fig = Figure(figsize=whole, facecolor="white")
    ax = fig.add_axes((left / whole[0], 0.3 / whole[1], width / whole[0], height / whole[1]))
    ends = {a.measure.name: _ends(a, report) for a in attacks}
    for i, attack in enumerate(attacks):
        y = i + gap * attack.control
        for j, model in enumerate(models):
            line = next((a for a in model.attacks if _same(a, attack)), None)
            if line is not None:
                place = _place(line, ends[attack.measure.name])
                ax.add_patch(
                    Rectangle((j, y), 1, 1, facecolor=shade(place, RAMP), edgecolor="white")
                )
                _write(ax, j, y, line, place)
    for j, model in enumerate(models):
        i = _strongest(model, attacks)
        if i is not None:
            ax.add_patch(
                Rectangle((j, i), 1, 1, fill=False, edgecolor=INK, linewidth=1.6, zorder=5)
            )
    rows = [i + 0.5 + gap * a.control for i, a in enumerate(attacks)]
    _axes(ax, names, labels, rows, len(models), len(attacks) + gap)
    fig.text(0.01, 0.08 / whole[1], _footnote(report), fontsize=7.5, color=MUTED)
    return fig


def caption(report: Report) -> str:
    """What the heat map shows, exactly."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    over = ", mean over seeds" if report.several_seeds else ""
    text = (
        f"The {worst} {report.forget.axis} at any step, learning rate and setting of each attack"
        f"{over}; the more a cell stands out, the more is back. "
        "Framed: the strongest attack on a model. "
    )
    if any(a.control for a in _attacks(report)):
        text += "Controls, below, count in no strongest attack, and may have metrics of their own. "
    return text + "The file of numbers has each seed, and how soon half was back."


def rows(report: Report) -> list[Result]:
    """Every attack on every model and seed."""
    return [
        Result(
            m.name, seed, a.attack, a.control, a.measure.name, a.trials[i],
            *(_known(of.values[i]) for of in (a.worst, a.retain, a.steps, a.examples, a.area)),
        )
        for m in report.attacked
        for a in m.attacks
        for i, seed in enumerate(m.seeds)
    ]  # fmt: skip


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _attacks(report: Report) -> list[Attacked]:
    """Each attack once, in the order of the experiment; controls last."""
    found = {(a.attack, a.control): a for m in report.attacked for a in m.attacks}
    return sorted(found.values(), key=lambda a: a.control)


def _label(attack: Attacked) -> str:
    return shortened(attack.attack) + (" (control)" if attack.control else "")


def _ends(attack: Attacked, report: Report) -> tuple[float, float]:
    """Scores that are drawn lightest and darkest: an accuracy's 0 and 1, else what there is."""
    if (whole := limits(attack.measure)) is not None:
        return whole
    lines = [a for m in report.attacked for a in m.attacks]
    means = [a.worst.mean for a in lines if a.measure.name == attack.measure.name]
    known = sorted(filter(math.isfinite, means)) or [0.0]
    low, high = known[0], known[-1]
    return (low, high) if attack.measure.higher_is_better else (high, low)


def _place(line: Attacked, ends: tuple[float, float]) -> float:
    """Where a score is along the ramp, from 0 to 1."""
    low, high = ends
    if not line.worst.finite or low == high:
        return 0.0
    return min(max((line.worst.mean - low) / (high - low), 0.0), 1.0)


def _write(ax: Axes, j: int, y: float, line: Attacked, place: float) -> None:
    text = score(line.worst.mean) if line.worst.finite else NONE
    colour = "white" if place > DARK else INK
    ax.text(j + 0.5, y + 0.53, text, ha="center", va="center", fontsize=7.5, color=colour)


def _strongest(model: Row, attacks: list[Attacked]) -> int | None:
    """Which of the attacks is strongest on a model."""
    best = next((a for a in ordered(model) if not a.control and a.worst.finite), None)
    return next((i for i, a in enumerate(attacks) if best and _same(a, best)), None)


def _same(one: Attacked, other: Attacked) -> bool:
    """Whether two lines are of one attack; a control may have an attack's name."""
    return (one.attack, one.control) == (other.attack, other.control)


def _axes(
    ax: Axes, names: list[str], labels: list[str], rows: list[float], width: int, height: float
) -> None:
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.xaxis.tick_top()
    ax.set_xticks([j + 0.5 for j in range(width)], names, rotation=40, ha="left", fontsize=SIZE)
    ax.set_yticks(rows, labels, fontsize=SIZE)
    ax.tick_params(length=0, pad=3)


def _footnote(report: Report) -> str:
    return f"{report.seed_counts} seeds" if report.several_seeds else "one seed"

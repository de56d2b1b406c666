"""Whether robustness for compute grows with the size of the model: a question of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import Claim
from undo_jax.report.drawing import MUTED, PURPLE, WARM, shade
from undo_jax.report.numbers import MIN_GAP
from undo_jax.report.panels import Look
from undo_jax.report.paper import (
    FORGET,
    FRESH,
    PERMUTED,
    compute_axes,
    relearning_points,
    score_label,
    setting_title,
    slower,
)
from undo_jax.report.paper.alpha import alphas
from undo_jax.report.statistics import Seed, pairs
from undo_jax.report.studies import PaperPoint, Study, difference
from undo_jax.report.tables import of_setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Robustness for compute, by size"
COMPUTE = "robustness against FLOPs"
MARKS = {"o": "circles", "s": "squares", "D": "diamonds", "v": "triangles"}  # from the smallest


def slowness(study: Study, model: str) -> dict[Seed, float]:
    """Returns how slowly a model relearns, in % by areas: 0 is unlearn-only, 100 the oracle.

    Robustness proper asks for the highest score of the whole attack. Large models, the oracle among
    them, have all of it by then. nan where the oracle does not relearn more slowly.
    """
    unlearned, oracle = study.areas("unlearn-only"), study.areas("oracle")
    gains, gaps = difference(unlearned, study.areas(model)), difference(unlearned, oracle)
    return {
        seed: 100 * gain / gap if gap >= MIN_GAP else math.nan
        for seed, (gain, gap) in pairs(gains, gaps).items()
    }


def _by_size(studies: Sequence[Study]) -> list[Study]:
    """Returns the experiments by the FLOPs of their base, which rise with its size."""
    return sorted(studies, key=lambda study: max(_flops(study), default=0.0))


def _flops(study: Study) -> list[float]:
    return [
        case.artifact.summary["flops"]
        for case in study.cases("base").values()
        if case.artifact is not None
    ]


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields robustness and FLOPs of distilled models, and forget scores by relearning step."""
    for study in _by_size(studies):
        for model in (*alphas(study), FRESH):
            flops = study.compute(model, "flops")
            for seed, robustness in slowness(study, model).items():
                if math.isfinite(robustness):
                    yield PaperPoint(COMPUTE, study.setting, model, seed, flops[seed], robustness)
        for model in _looks(study):
            yield from relearning_points(study, model)


def _looks(study: Study) -> dict[str, Look]:
    grid = [*alphas(study)]
    shades = {m: Look(shade(rank / max(len(grid) - 1, 1))) for rank, m in enumerate(grid)}
    fresh = Look(PURPLE, (0, (7, 1.8, 1.2, 1.8)))
    return {"unlearn-only": Look(WARM), **shades, FRESH: fresh, "oracle": panels.FILTERING}


def draw(studies: Sequence[Study]) -> Figure:
    """Returns robustness by FLOPs, a marker's form for each size; then relearning, by size."""
    shown, sizes = list(points(studies)), _by_size(studies)
    looks = {name: look for study in sizes for name, look in _looks(study).items()}
    rows = [panel for panel in (FORGET, PERMUTED) if any(p.panel == panel for p in shown)]
    fig, axes = panels.figure(len(rows), 1 + len(sizes), legend_rows=2)

    # The first column: one panel of all sizes.
    size_looks = {}
    for study, mark in zip(sizes, cycle(MARKS), strict=False):
        size_looks[setting_title(study)] = Look(MUTED, "", mark)
        for model, look in looks.items():
            key = COMPUTE, study.setting, model
            of_model = [p for p in shown if (p.panel, p.setting, p.model) == key]
            panels.mark(axes[0][0], of_model, look.colour, mark)
    compute_axes(axes[0][0], "Robustness by areas, %", "FLOPs")
    for row in axes[1:]:
        row[0].set_axis_off()

    # The other columns: relearning at each size.
    for row, panel in zip(axes, rows, strict=True):
        for ax, study in zip(row[1:], sizes, strict=True):
            curves = panels.curves_of(shown, panel, study.setting)
            panels.relearning(ax, curves, looks, study.forget, setting_title(study))
        row[1].set_ylabel(score_label(sizes[0], panel == PERMUTED), fontsize=8.5)
    panels.legend(fig, looks | size_looks, columns=4)
    return fig


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    sizes = [
        f"{MARKS[mark]}: {of_setting(study.setting)} ({len(study.cases('base'))} seeds)"
        for study, mark in zip(_by_size(studies), cycle(MARKS), strict=False)
    ]
    return (
        "Left: robustness by areas under the relearning curve, (A_unlearn-only − A) / "
        "(A_unlearn-only − A_oracle), for by its end the attack brings all back in large models, "
        "the oracle among them; against the FLOPs of distillation in % of the oracle's training, "
        f"with the teacher's forward pass; {'; '.join(sizes)}; the star is data filtering. Then: "
        "forget score against relearning steps, at each step of the strongest learning rate of "
        "each seed; below, of permuted answers, which nobody knew. Bars and bands go from the "
        "lowest to the highest seed."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields whether students relearn more slowly at each size, and how it grows with size."""
    sizes = _by_size(studies)
    for study in sizes:
        for model in (*alphas(study), FRESH):
            yield slower(study, model, "unlearn-only", paper=False)
    for smaller, larger in pairwise(sizes):
        for model in (*alphas(smaller), FRESH):
            growth = difference(_rates(larger, model), _rates(smaller, model))
            says = f"{model} is more robust for its FLOPs than at {of_setting(smaller.setting)}"
            quantity = "difference of robustness by areas ÷ FLOPs, both in % of the oracle's"
            finished = not smaller.logs.unfinished
            yield Claim(says, larger.setting, quantity, growth, paper=False, finished=finished)


def _rates(study: Study, model: str) -> dict[Seed, float]:
    """Returns % of the oracle's robustness for each % of its FLOPs, by seed."""
    flops = study.compute(model, "flops")
    return {s: robust / flops[s] for s, robust in slowness(study, model).items() if flops[s] > 0}

"""Whether robustness for compute grows with the size of the model: a question of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.drawing import MUTED, PURPLE, WARM, shade
from undo_jax.report.numbers import MIN_GAP
from undo_jax.report.panels import Look
from undo_jax.report.paper.alpha import FRESH, alphas
from undo_jax.report.statistics import Seed, pairs
from undo_jax.report.studies import Point, Study, difference, lines
from undo_jax.report.tables import of_setting, sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Robustness for compute, by size"
TRADE, FORGET = "robustness against FLOPs", "relearning"
PERMUTED = "relearning permuted answers"
MARKS = {"o": "circles", "s": "squares", "D": "diamonds", "v": "triangles"}  # from the smallest


def slowness(study: Study, model: str) -> dict[Seed, float]:
    """How slowly a model relearns, in % by areas: 0 is unlearn-only, 100 the oracle; by seed.

    Robustness proper asks for the highest score of the whole attack. Large models, the oracle among
    them, have all of it by then. nan where the oracle does not relearn more slowly.
    """
    nothing, everything = study.areas("unlearn-only"), study.areas("oracle")
    behind, gaps = difference(nothing, study.areas(model)), difference(nothing, everything)
    return {
        seed: 100 * its / gap if gap >= MIN_GAP else math.nan
        for seed, (its, gap) in pairs(behind, gaps).items()
    }


def _by_size(studies: Mapping[str, Study]) -> dict[str, Study]:
    """The experiments by the FLOPs of their base, which rise with its size."""
    return dict(sorted(studies.items(), key=lambda one: max(_flops(one[1]), default=0.0)))


def _flops(study: Study) -> list[float]:
    return [
        case.artifact.summary["flops"]
        for case in study.cases("base").values()
        if case.artifact is not None
    ]


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Robustness and FLOPs of distilled models; forget scores by step, of permuted answers, too."""
    found: list[Point] = []
    for setting, study in _by_size(studies).items():
        for model in (*alphas(study), FRESH):
            spent = study.compute(model, "flops")
            for seed, robust in slowness(study, model).items():
                if math.isfinite(robust):
                    found.append(Point(TRADE, setting, model, seed, spent[seed], robust))
        for model in _looks(study):
            found += lines(FORGET, setting, model, study.relearned(model))
            found += lines(PERMUTED, setting, model, study.control(model, "permuted"))
    return found


def _looks(study: Study) -> dict[str, Look]:
    grid = [*alphas(study)]
    shades = {m: Look(shade(rank / max(len(grid) - 1, 1))) for rank, m in enumerate(grid)}
    fresh = Look(PURPLE, (0, (7, 1.8, 1.2, 1.8)))
    return {"unlearn-only": Look(WARM), **shades, FRESH: fresh, "oracle": panels.FILTERING}


def _marks(sizes: Mapping[str, Study]) -> dict[str, str]:
    """A mark for each size."""
    return dict(zip(sizes, cycle(MARKS), strict=False))


def draw(studies: Mapping[str, Study]) -> Figure:
    """Robustness by FLOPs, a marker's form for each size; then relearning, a column for each."""
    shown, sizes = points(studies), _by_size(studies)
    looks = {name: look for study in sizes.values() for name, look in _looks(study).items()}
    rows = [what for what in (FORGET, PERMUTED) if any(p.panel == what for p in shown)]
    fig, axes = panels.figure(len(rows), 1 + len(sizes), legend_rows=2)
    trade = axes[0][0]
    marks = _marks(sizes)
    for setting, mark in marks.items():
        for model, look in looks.items():
            of = [p for p in shown if (p.panel, p.setting, p.model) == (TRADE, setting, model)]
            panels.mark(trade, of, look.colour, mark)
    panels.data_filtering(trade)
    panels.title(trade, "Robustness by areas, %")
    trade.set_xlabel("distillation, % of the oracle's FLOPs", fontsize=8.5)
    axis = next(iter(sizes.values())).forget.axis
    for row, what in zip(axes, rows, strict=True):
        for ax, (setting, study) in zip(row[1:], sizes.items(), strict=True):
            curves = panels.curves_of(shown, what, setting)
            panels.relearning(ax, curves, looks, study.forget, sentence(of_setting(setting)))
        told = "the same, permuted answers" if what == PERMUTED else axis
        row[1].set_ylabel(told, fontsize=8.5)
    for row in axes[1:]:
        row[0].set_axis_off()
    of_marks = {sentence(of_setting(name)): Look(MUTED, "", mark) for name, mark in marks.items()}
    panels.legend(fig, looks | of_marks, columns=4)
    return fig


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
    told = [
        f"{MARKS[mark]}: {of_setting(setting)} ({len(studies[setting].cases('base'))} seeds)"
        for setting, mark in _marks(_by_size(studies)).items()
    ]
    return (
        "Left: robustness by areas under the relearning curve, (A_unlearn-only − A) / "
        "(A_unlearn-only − A_oracle), for by its end the attack brings all back in large models, "
        "the oracle among them; against the FLOPs of distillation in % of the oracle's training, "
        f"with the teacher's forward pass; {'; '.join(told)}; the star is data filtering. Then: "
        "forget score against relearning steps, at each step of the strongest learning rate of "
        "each seed; below, of permuted answers, which nobody knew. Bars and bands go from the "
        "lowest to the highest seed."
    )


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """Whether distilled students relearn more slowly at each size, and how it grows with size."""
    found, sizes = [], _by_size(studies)
    for setting, study in sizes.items():
        for model in (*alphas(study), FRESH):
            slower = difference(study.areas("unlearn-only"), study.areas(model))
            says = f"{model} relearns more slowly than unlearn-only"
            found.append(Claim(says, setting, AREAS, slower, paper=False))
    for (small, one), (large, other) in pairwise(sizes.items()):
        for model in (*alphas(one), FRESH):
            growth = difference(_rates(other, model), _rates(one, model))
            says = f"{model} is more robust for its FLOPs than at {of_setting(small)}"
            what = "difference of robustness by areas ÷ FLOPs, both in % of the oracle's"
            done = not one.logs.unfinished
            found.append(Claim(says, large, what, growth, paper=False, finished=done))
    return found


def _rates(study: Study, model: str) -> dict[Seed, float]:
    """% of the oracle's robustness for each % of its FLOPs, by seed."""
    spent = study.compute(model, "flops")
    return {s: robust / spent[s] for s, robust in slowness(study, model).items() if spent[s] > 0}

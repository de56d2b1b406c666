"""Matching the oracle's outputs does not make a student as robust (paper §3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.drawing import GREY, WARM
from undo_jax.report.panels import Look
from undo_jax.report.studies import Point, Seed, Study, difference, lines
from undo_jax.report.tables import of_setting, sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Oracle matching does not guarantee robust unlearning"
REFERENCE, RANDOM, SAME_INIT = (
    "Student (Reference)", "Student (Random)", "Student (oracle's init)",
)  # fmt: skip
LOOKS = {
    REFERENCE: Look(WARM),
    RANDOM: Look("#2b6fb3"),
    SAME_INIT: Look("#3bb3c4", (0, (2.6, 1.4))),
    "base, distilled": Look(GREY, (0, (1, 1.8))),
    "oracle": panels.ORACLE,
}
LOSS, FORGET, PERMUTED = "distillation loss", "relearning", "relearning permuted answers"
ENDS = 5  # the last losses that count as where a distillation ends
MATCHED = 0.05  # of the random student's first loss: both students count as matching below it


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Losses of both students by step, and forget scores of all models by relearning step."""
    found: list[Point] = []
    for setting, study in studies.items():
        for model in LOOKS:
            if model in (REFERENCE, RANDOM):
                found += lines(LOSS, setting, model, study.losses(model))
            found += lines(FORGET, setting, model, study.relearned(model))
            found += lines(PERMUTED, setting, model, study.control(model, "permuted"))
    return found


def draw(studies: Mapping[str, Study]) -> Figure:
    """A row per setting: losses, relearning, and relearning of permuted answers if there is any."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    shown = points(studies)
    columns = [LOSS, FORGET, *([PERMUTED] if any(p.panel == PERMUTED for p in shown) else [])]
    fig, axes = panels.figure(len(studies), len(columns))
    for row, (setting, study) in enumerate(studies.items()):
        for ax, panel in zip(axes[row], columns, strict=True):
            curves = panels.curves_of(shown, panel, setting)
            if panel == LOSS:
                panels.draw_curves(ax, curves, LOOKS)
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                ax.yaxis.set_minor_formatter(NullFormatter())
                panels.title(ax, f"{sentence(of_setting(setting))}: loss (nats)")
                ax.set_xlabel("distillation steps", fontsize=8.5)
            else:
                told = study.forget.axis if panel == FORGET else "the same, permuted answers"
                panels.relearning(ax, curves, LOOKS, study.forget, told)
    panels.legend(fig, LOOKS, len(LOOKS))
    return fig


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
    return (
        "Left: loss of the distillation from the oracle, one batch a point, on a logarithmic "
        "scale. Then: forget score against relearning steps, at each step of the strongest "
        "learning rate of each seed. Last: relearning × and ÷ with permuted answers, which nobody "
        "knew: what is fast here, too, is not knowledge that comes back. Lines are means over "
        "seeds, bands go from the lowest to the highest. Student (Reference) begins as the base, "
        "Student (Random) at random, the third as the oracle did; “base, distilled” is a random "
        "student of the base, which was never unlearned."
    )


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """Both students match the oracle; the one that has seen forget data relearns faster."""
    found = []
    for setting, study in studies.items():
        first = {s: next(iter(c.values()), math.nan) for s, c in study.losses(RANDOM).items()}
        for student in (REFERENCE, RANDOM):
            ends = {seed: list(c.values())[-ENDS:] for seed, c in study.losses(student).items()}
            ratios = {s: _ratio(e, first[s]) for s, e in ends.items() if s in first}
            found.append(
                Claim(
                    f"{student} comes to give the oracle's outputs",
                    setting,
                    f"its last loss (mean of {ENDS}) ÷ the first of {RANDOM}",
                    ratios,
                    bound=MATCHED,
                    above=False,
                )
            )
        for student in (REFERENCE, RANDOM):
            says, what = (
                f"{student} keeps as much retain as the oracle, within 0.05",
                "retain score",
            )
            kept = study.kept(student, "oracle")
            found.append(Claim(says, setting, what, kept, bound=-0.05, paper=False))
        areas = {model: study.areas(model) for model in LOOKS}
        for slower in (RANDOM, "oracle"):
            found.append(
                _faster(setting, REFERENCE, slower, difference(areas[REFERENCE], areas[slower]))
            )
        found.append(
            _faster(setting, RANDOM, "oracle", difference(areas[RANDOM], areas["oracle"]), False)
        )
        permuted = [study.control_areas(model, "permuted") for model in (REFERENCE, RANDOM)]
        if any(permuted):
            says = f"{REFERENCE} relearns permuted answers faster than {RANDOM}"
            found.append(
                Claim(says, setting, "difference of areas", difference(*permuted), paper=False)
            )
    return found


def _ratio(ends: Sequence[float], first: float) -> float:
    """The mean of the last losses ÷ a first one; nan where there are none, or that is 0."""
    return math.fsum(ends) / len(ends) / first if ends and first else math.nan


def _faster(
    setting: str, one: str, other: str, values: Mapping[Seed, float], paper: bool = True
) -> Claim:
    return Claim(f"{one} relearns faster than {other}", setting, AREAS, values, paper=paper)

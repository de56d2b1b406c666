"""What happens to robustness when distillation goes on after the student has recovered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.drawing import RAMP, WARM
from undo_jax.report.panels import Look
from undo_jax.report.studies import Point, Seed, Study, difference, lines
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Beyond the stop rule"
STUDENTS = ("UNDO", "Unlearn-and-Distill")
LOOKS = {
    "unlearn-only": Look(WARM),
    "1×": Look(RAMP[0]),
    "2×": Look(RAMP[1]),
    "4×": Look(RAMP[2]),
    "filtered, 4×": Look("#c98a1b", (0, (2.6, 1.4))),
    "of the longer unlearned, 4×": Look("#8a4fa3", (0, (7, 1.8, 1.2, 1.8))),
    "oracle": panels.ORACLE,
    "oracle, 4×": Look("#8b8f96", (0, (4, 2.2))),
}
CONTROLS = {"": "relearning", "permuted": "permuted answers", "half": "families not relearned"}


def _name(student: str, line: str) -> str:
    return line if line.startswith(("oracle", "unlearn")) else f"{student}, {line}"


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Scores by relearning step of each student and control; a panel for each of the two."""
    found: list[Point] = []
    for setting, study in studies.items():
        for student in STUDENTS:
            for line in (*LOOKS, "filtered, 1×", "of the longer unlearned, 1×", "unlearn-only, 4×"):
                model = _name(student, line)
                for control, what in CONTROLS.items():
                    of = study.control(model, control) if control else study.relearned(model)
                    found += lines(f"{student}: {what}", setting, line, of)
    return found


def draw(studies: Mapping[str, Study]) -> Figure:
    """A row per setting and student; relearning, and its controls where answers can be permuted."""
    shown = points(studies)
    whats = [w for w in CONTROLS.values() if any(p.panel.endswith(f": {w}") for p in shown)]
    rows = [(setting, student) for setting in studies for student in STUDENTS]
    fig, axes = panels.figure(len(rows), len(whats), legend_rows=2)
    for row, (setting, student) in enumerate(rows):
        for ax, what in zip(axes[row], whats, strict=True):
            curves = panels.curves_of(shown, f"{student}: {what}", setting)
            curves = {m: c for m, c in curves.items() if m in LOOKS}
            forget = studies[setting].forget
            panels.relearning(ax, curves, LOOKS, forget, sentence(what), "for arithmetic only")
        told = f"{sentence(setting)}, {student}\n{studies[setting].forget.axis}"
        axes[row][0].set_ylabel(told, fontsize=8.5)
    panels.legend(fig, LOOKS, columns=4)
    return fig


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
    return (
        "Forget score against relearning steps, at each step of the strongest learning rate of "
        "each seed. A student of UNDO (α = 0.8) and a fresh one were distilled for about as long "
        "as the stop rule takes (1×), and two and four times as long. Filtered: uniform targets "
        "on forget rows, and the teacher's on others. Of the longer unlearned: the teacher was "
        "unlearned four times as long. Oracle, 4×: data filtering trained four times as long. "
        "Where answers can be permuted: relearning answers that nobody knew; and the score on the "
        "fact families that are not relearned, when half of them are. Lines are means over seeds, "
        "bands go from the lowest to the highest."
    )


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """Ours alone: the paper does not ask."""
    return [claim for setting, study in studies.items() for claim in _claims(setting, study)]


def _claims(setting: str, study: Study) -> Iterator[Claim]:
    areas = {model: study.areas(model) for model in study.models if model != "base"}
    long, short = areas["oracle, 4×"], areas["oracle"]
    yield _faster("an oracle trained 4×", "one trained once", setting, long, short)
    for student in STUDENTS:
        once, four = f"{student}, 1×", f"{student}, 4×"
        yield _faster(f"{student} distilled 4×", "1×", setting, areas[four], areas[once])
        permuted = [study.control_areas(m, "permuted") for m in (four, once)]
        if all(permuted):
            says = f"{student} distilled 4×, of permuted answers,"
            yield _faster(says, "1×", setting, *permuted)
            half = [_peaks(study.control(m, "half")) for m in (four, "oracle")]
            says = f"{student} distilled 4× knows more of families not relearned than the oracle"
            quantity = "difference of the highest scores on them"
            yield Claim(says, setting, quantity, difference(*half), paper=False)
        for remedy in ("filtered", "of the longer unlearned"):
            own = areas[f"{student}, {remedy}, 4×"]
            yield _faster(f"{student} distilled 4×", f"so and {remedy}", setting, areas[four], own)
        kept = study.kept(f"{student}, filtered, 4×", four)
        says = f"{student} distilled 4× and filtered keeps retain, within 0.02"
        yield Claim(says, setting, "difference of retain", kept, bound=-0.02, paper=False)


def _faster(
    one: str, other: str, setting: str, its: Mapping[Seed, float], others: Mapping[Seed, float]
) -> Claim:
    says = f"{one} relearns faster than {other}"
    return Claim(says, setting, AREAS, difference(its, others), paper=False)


def _peaks(curves: Mapping[Seed, Mapping[int, float]]) -> dict[Seed, float]:
    return {seed: max(curve.values(), default=math.nan) for seed, curve in curves.items()}

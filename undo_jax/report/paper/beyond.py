"""What happens to robustness when distillation goes on after the student has recovered."""

import math
from collections.abc import Iterator, Mapping, Sequence

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import RAMP, WARM
from undo_jax.report.panels import ORACLE, Look
from undo_jax.report.paper import (
    FRESH,
    PaperPanel,
    PaperPlot,
    claim,
    counted_attacks,
    keeps_retain,
    permuted_slower,
    slower,
)
from undo_jax.report.studies import PaperPoint, Seed, Study, curve_points, difference
from undo_jax.report.tables import sentence

TITLE = "Beyond the stop rule"
STUDENTS = ("UNDO", FRESH)
LOOKS = {
    "unlearn-only": Look(WARM),
    "1×": Look(RAMP[0]),
    "2×": Look(RAMP[1]),
    "4×": Look(RAMP[2]),
    "filtered, 4×": Look("#c98a1b", (0, (2.6, 1.4))),
    "of the longer unlearned, 4×": Look("#8a4fa3", (0, (7, 1.8, 1.2, 1.8))),
    "oracle": ORACLE,
    "oracle, 4×": Look("#8b8f96", (0, (4, 2.2))),
}
NOT_DRAWN = ("filtered, 1×", "of the longer unlearned, 1×", "unlearn-only, 4×")
COLUMNS = {"": "relearning", "permuted": "permuted answers", "half": "families not relearned"}


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields scores by relearning step of each student and control, in a panel for each."""
    for study in studies:
        for student in STUDENTS:
            for line in (*LOOKS, *NOT_DRAWN):
                is_shared = line.startswith(("oracle", "unlearn"))
                model = line if is_shared else f"{student}, {line}"
                for control, column in COLUMNS.items():
                    curves = study.control(model, control) if control else study.relearned(model)
                    yield from curve_points(f"{student}: {column}", study.setting, line, curves)


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes a row per setting and student: relearning, and its controls if there are any."""
    columns = [c for c in COLUMNS.values() if any(p.panel.endswith(f": {c}") for p in points)]
    rows = [
        [
            PaperPanel(
                f"{student}: {column}",
                study,
                sentence(column),
                "" if i else f"{sentence(study.setting)}, {student}\n{study.forget.axis}",
                without="for arithmetic only",
            )
            for i, column in enumerate(columns)
        ]
        for study in studies
        for student in STUDENTS
    ]
    return PaperPlot(rows, LOOKS, legend_rows=2)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        f"Forget score against relearning steps, {counted_attacks(studies)}. A student of UNDO "
        "(α = 0.8) and a fresh one were distilled for about as long as the stop rule takes (1×), "
        "and two and four times as long. Filtered: uniform targets on forget rows, and the "
        "teacher's on others. Of the longer unlearned: the teacher was "
        "unlearned four times as long. Oracle, 4×: data filtering trained four times as long. "
        "Where answers can be permuted: relearning answers that nobody knew; and the score on the "
        "fact families that are not relearned, when half of them are. Lines are means over seeds, "
        "bands go from the lowest to the highest."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields claims of ours alone: the paper makes none."""
    for study in studies:
        yield _faster(study, "oracle, 4×", "oracle", "an oracle trained 4×", "one trained once")
        for student in STUDENTS:
            yield from _student_claims(study, student)


def _student_claims(study: Study, student: str) -> Iterator[Claim]:
    once, four = f"{student}, 1×", f"{student}, 4×"
    longer = f"{student} distilled 4×"
    yield _faster(study, four, once, longer, "1×")
    says = f"{longer}, of permuted answers, relearns faster than 1×"
    if permuted := permuted_slower(study, once, four, says):
        yield from permuted
        half = [_peaks(study.control(model, "half")) for model in (four, "oracle")]
        says = f"{longer} knows more of families not relearned than the oracle"
        quantity = "difference of the highest scores on them"
        yield claim(study, says, quantity, difference(*half))
    for remedy in ("filtered", "of the longer unlearned"):
        yield _faster(study, four, f"{student}, {remedy}, 4×", longer, f"so and {remedy}")
    says = f"{longer} and filtered keeps retain"
    filtered = f"{student}, filtered, 4×"
    yield keeps_retain(study, filtered, four, 0.02, "difference of retain", says)


def _faster(study: Study, fast: str, slow: str, name: str, slow_name: str) -> Claim:
    """Returns the claim that model `fast`, called `name`, relearns faster than model `slow`."""
    return slower(study, slow, fast, f"{name} relearns faster than {slow_name}")


def _peaks(curves: Mapping[Seed, Mapping[int, float]]) -> dict[Seed, float]:
    return {seed: max(curve.values(), default=math.nan) for seed, curve in curves.items()}

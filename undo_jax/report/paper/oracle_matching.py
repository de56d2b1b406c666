"""Matching the oracle's outputs does not make a student as robust (paper §3)."""

import math
from collections.abc import Iterator, Sequence

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import GREY, WARM
from undo_jax.report.panels import ORACLE, Look
from undo_jax.report.paper import (
    PaperPanel,
    PaperPlot,
    claim,
    counted_attacks,
    keeps_retain,
    permuted_slower,
    relearning_points,
    score_panels,
    slower,
)
from undo_jax.report.studies import PaperPoint, Study, curve_points
from undo_jax.report.tables import sentence

TITLE = "Oracle matching does not guarantee robust unlearning"
REFERENCE, RANDOM, SAME_INIT = (
    "Student (Reference)", "Student (Random)", "Student (oracle's init)",
)  # fmt: skip
LOOKS = {
    REFERENCE: Look(WARM),
    RANDOM: Look("#2b6fb3"),
    SAME_INIT: Look("#3bb3c4", (0, (2.6, 1.4))),
    "base, distilled": Look(GREY, (0, (1, 1.8))),
    "oracle": ORACLE,
}
LOSS = "distillation loss"
LAST = 5  # losses whose mean is that of the end of a distillation
MATCHED = 0.05  # of the random student's first loss: both students count as matching below it


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields losses of both students by step, and forget scores by relearning step."""
    for study in studies:
        for model in LOOKS:
            if model in (REFERENCE, RANDOM):
                yield from curve_points(LOSS, study.setting, model, study.losses(model))
            yield from relearning_points(study, model)


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes a row per setting: losses, relearning, and permuted answers if there are any."""
    rows = []
    for study in studies:
        title = f"{sentence(study.setting)}: loss (nats)"
        losses = PaperPanel(
            LOSS,
            study,
            title,
            x="distillation steps",
            loss=True,
            without="no distillation has losses",
        )
        rows.append([losses, *score_panels(study, points)])
    return PaperPlot(rows, LOOKS)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        "Left: loss of the distillation from the oracle, one batch a point, on a logarithmic "
        f"scale. Then: forget score against relearning steps, {counted_attacks(studies)}. "
        "Last: relearning × and ÷ with permuted answers, which nobody "
        "knew: what is fast here, too, is not knowledge that comes back. Lines are means over "
        "seeds, bands go from the lowest to the highest. Student (Reference) begins as the base, "
        "Student (Random) at random, the third as the oracle did; “base, distilled” is a random "
        "student of the base, which was never unlearned."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields: both students match the oracle; the one that has seen forget data relearns faster."""
    for study in studies:
        first = {s: next(iter(c.values()), math.nan) for s, c in study.losses(RANDOM).items()}
        for student in (REFERENCE, RANDOM):
            last = {seed: list(c.values())[-LAST:] for seed, c in study.losses(student).items()}
            ratios = {s: _ratio(losses, first[s]) for s, losses in last.items() if s in first}
            says = f"{student} comes to give the oracle's outputs"
            quantity = f"its last loss (mean of {LAST}) ÷ the first of {RANDOM}"
            yield claim(study, says, quantity, ratios, paper=True, bound=MATCHED, above=False)
        for student in (REFERENCE, RANDOM):
            says = f"{student} keeps as much retain as the oracle"
            yield keeps_retain(study, student, "oracle", 0.05, "retain score", says)
        for fast, slow in ((REFERENCE, RANDOM), (REFERENCE, "oracle"), (RANDOM, "oracle")):
            says = f"{fast} relearns faster than {slow}"
            yield slower(study, slow, fast, says, paper=fast == REFERENCE)
        says = f"{REFERENCE} relearns permuted answers faster than {RANDOM}"
        yield from permuted_slower(study, RANDOM, REFERENCE, says, "difference of areas")


def _ratio(losses: Sequence[float], first: float) -> float:
    """Returns the mean of losses ÷ a first one; nan if there are none, or that is 0."""
    return math.fsum(losses) / len(losses) / first if losses and first else math.nan

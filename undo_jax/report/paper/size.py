"""Whether robustness for compute grows with the size of the model: a question of ours."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, pairwise

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import MUTED
from undo_jax.report.panels import STAR, Look
from undo_jax.report.paper import (
    FRESH,
    PERMUTED,
    PaperPanel,
    PaperPlot,
    claim,
    compute_panel,
    relearning_points,
    score_label,
    shown_panels,
    slower,
)
from undo_jax.report.paper.alpha import alphas, looks_of
from undo_jax.report.statistics import MIN_GAP, Seed, pairs
from undo_jax.report.studies import PaperPoint, Study, difference
from undo_jax.report.tables import sentence

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

    def flops(study: Study) -> float:
        bases = [case.artifact for case in study.cases("base").values() if case.artifact]
        return max((base.summary["flops"] for base in bases), default=0.0)

    return sorted(studies, key=flops)


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields robustness and FLOPs of distilled models, and forget scores by relearning step."""
    for study in _by_size(studies):
        for model in (*alphas(study), FRESH):
            flops = study.compute(model, "flops")
            for seed, robustness in slowness(study, model).items():
                if math.isfinite(robustness):
                    yield PaperPoint(COMPUTE, study.setting, model, seed, flops[seed], robustness)
        for model in looks_of([study]):
            yield from relearning_points(study, model)


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes robustness by FLOPs, a marker's form for each size; then relearning, by size."""
    sizes = _by_size(studies)
    marks = dict(zip((study.setting for study in sizes), cycle(MARKS), strict=False))
    looks = {
        name: look if look.mark == STAR else Look(look.colour, look.style)
        for name, look in looks_of(sizes).items()
    }

    def mark_of(point: PaperPoint) -> Look:
        return replace(looks[point.model], mark=marks[point.setting])

    compute = compute_panel(COMPUTE, sizes[0], "Robustness by areas, %", "FLOPs", mark_of)
    rows = []
    for panel in shown_panels(points):
        label = score_label(sizes[0], panel == PERMUTED)
        row = [
            PaperPanel(panel, study, sentence(study.setting), "" if i else label)
            for i, study in enumerate(sizes)
        ]
        rows.append([None if rows else replace(compute, all_settings=True), *row])
    size_looks = {sentence(setting): Look(MUTED, "", mark) for setting, mark in marks.items()}
    return PaperPlot(rows, looks | size_looks, legend_rows=2, legend_columns=4)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    sizes = [
        f"{MARKS[mark]}: {study.setting} ({len(study.cases('base'))} seeds)"
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
            yield slower(study, model, "unlearn-only")
    for smaller, larger in pairwise(sizes):
        for model in (*alphas(smaller), FRESH):
            growth = difference(_rates(larger, model), _rates(smaller, model))
            says = f"{model} is more robust for its FLOPs than at {smaller.setting}"
            quantity = "difference of robustness by areas ÷ FLOPs, both in % of the oracle's"
            finished = not smaller.logs.unfinished
            yield claim(larger, says, quantity, growth, finished=finished)


def _rates(study: Study, model: str) -> dict[Seed, float]:
    """Returns % of the oracle's robustness for each % of its FLOPs, by seed."""
    flops = study.compute(model, "flops")
    return {s: robust / flops[s] for s, robust in slowness(study, model).items() if flops[s] > 0}

"""Baselines that readers of the paper asked for: other damage, other students, other targets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import GREY, PURPLE, RAMP, WARM
from undo_jax.report.panels import FILTERING, Look
from undo_jax.report.paper import (
    FRESH,
    PaperPlot,
    as_slow,
    compute_panel,
    compute_points,
    counted_attacks,
    keeps_retain,
    permuted_slower,
    relearning_points,
    score_panels,
    slower,
)
from undo_jax.report.studies import PaperPoint, Study
from undo_jax.report.tables import sentence

TITLE = "Baselines beside UNDO"
UNDO, ALONE, COPY, STATES, TOP, FILTERED, HALF = (
    "UNDO", "noise alone", "copy, distilled", "UNDO, with states", "UNDO, top-k logits",
    "UNDO, classifier's filter", "half-size student",
)  # fmt: skip
PRUNING, PARTS = "pruning", ("MLPs", "upper layers")
DASHED, DOTTED, MIXED = (2.6, 1.4), (1, 1.6), (7, 1.8, 1.2, 1.8)
LOOKS = {
    "unlearn-only": Look(WARM),
    UNDO: Look(RAMP[1]),
    FRESH: Look(PURPLE, (0, MIXED)),
    HALF: Look(PURPLE, (0, DOTTED)),
    COPY: Look("#c98a1b", (0, DASHED)),
    ALONE: Look(GREY, (0, DOTTED)),
    STATES: Look("#3bb3c4", (0, DASHED)),
    TOP: Look("#3bb3c4", (0, DOTTED)),
    FILTERED: Look("#2f9e5b", (0, MIXED)),
    "noise in MLPs": Look("#a86b4c"),
    "random, as MLPs": Look("#a86b4c", (0, DOTTED)),
    "noise in upper layers": Look("#7a7f35"),
    "random, as upper layers": Look("#7a7f35", (0, DOTTED)),
    PRUNING: Look("#b0577f", (0, DASHED)),
    "oracle": FILTERING,
}
_DAMAGE = tuple(f"{damage} {part}" for part in PARTS for damage in ("noise in", "random, as"))
GROUPS = {
    "students": (
        "unlearn-only", ALONE, COPY, FRESH, HALF, STATES, TOP, FILTERED, UNDO, "oracle"
    ),
    "damage": ("unlearn-only", *_DAMAGE, PRUNING, UNDO, "oracle"),
}  # fmt: skip
COMPUTE = "robustness against FLOPs"


def models_by_line(study: Study) -> dict[str, str]:
    """Returns the models by their lines: a model's name may end in the share of damaged weights."""
    return {model.partition(" (")[0]: model for model in study.models}


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields robustness and FLOPs of distilled models, and forget scores by step, by group."""
    for study in studies:
        models = models_by_line(study)
        for group, lines in GROUPS.items():
            for line in lines:
                model = models[line] if line in models else line
                yield from compute_points(study, model, "flops", f"{group}: {COMPUTE}", line)
                yield from relearning_points(study, model, line, f"{group}: {{}}")


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes a row per setting and group: robustness by FLOPs, relearning, its control."""
    rows = []
    for study in studies:
        for group in GROUPS:
            title = f"{sentence(study.setting)}, {group}: robustness, %"
            compute = compute_panel(f"{group}: {COMPUTE}", study, title, "FLOPs", _mark_of)
            rows.append([compute, *score_panels(study, points, f"{group}: {{}}")])
    return PaperPlot(rows, LOOKS, legend_rows=3)


def _mark_of(point: PaperPoint) -> Look:
    """Returns the mark of a line; hollow where the line is dotted."""
    look = LOOKS[point.model]
    mark = "o" if look.style == "-" else "D"
    return replace(look, mark=mark, hollow=look.style == (0, DOTTED))


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    shares = [
        f"{study.setting}: {', '.join(m for line, m in models_by_line(study).items() if m != line)}"
        for study in studies
    ]
    return (
        "Left: robustness against the FLOPs of distillation, with all models that it reads, in % "
        "of the oracle's training; a circle where the model's line is solid, else a diamond, which "
        "is hollow where it is dotted; the star is data filtering. Then: forget score against "
        f"relearning steps, {counted_attacks(studies)}; and that of permuted answers, which nobody "
        "knew. Bars and bands go from the lowest to the highest seed. Noise alone: UNDO's student, "
        "not distilled, which has forgotten what is retained, too. Copy: the teacher itself as "
        "student, without noise, for a fixed number of steps. With states: the error of residual "
        "states is added to the loss. Top-k logits: of the teacher's distribution a student sees "
        "the likeliest few tokens and the mass of the rest. Classifier's filter: uniform targets "
        "on documents that a classifier of the base's states flags; it has seen a few labelled "
        "rows. Damage: all with UNDO's α and distilled as UNDO; random, as X: noise "
        "on as many weights as in X. Shares of the weights that are damaged, of pruning those of "
        f"each matrix: {'; '.join(shares)}."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields claims of ours alone: the paper makes none."""
    for study in studies:
        models = models_by_line(study)
        for says, fast, slow in (
            ("a copy without noise distilled for about as long relearns faster than UNDO",
             COPY, UNDO),
            ("noise without distillation relearns faster than UNDO", ALONE, UNDO),
            ("pruning makes a student that relearns faster than UNDO's", PRUNING, UNDO),
            ("states beside logits make UNDO relearn faster", STATES, UNDO),
            ("UNDO that sees the largest logits alone relearns faster", TOP, UNDO),
            ("UNDO without the classifier's filter relearns faster than with it", UNDO, FILTERED),
            *((f"noise in {part} makes a student that relearns more slowly than noise on as many "
               "weights at random", f"random, as {part}", f"noise in {part}") for part in PARTS),
        ):  # fmt: skip
            faster, slowest = models[fast], models[slow]
            yield slower(study, slowest, faster, says)
            says = f"... and so it is of permuted answers ({faster} against {slowest})"
            quantity = "the same difference of permuted answers"
            yield from permuted_slower(study, slowest, faster, says, quantity)
        says = f"a half-size student relearns as slowly as {FRESH}"
        yield as_slow(study, HALF, FRESH, says)
        for line in (ALONE, STATES, TOP, FILTERED, HALF):
            says = f"{line} keeps as much retain as UNDO"
            yield keeps_retain(study, line, UNDO, 0.02, "retain score", says)

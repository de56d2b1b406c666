"""Distillation robustifies unlearning by any method (paper §3)."""

from collections.abc import Iterator, Sequence

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import PURPLE, WARM
from undo_jax.report.panels import ORACLE, Look
from undo_jax.report.paper import (
    FRESH,
    PERMUTED,
    PaperPanel,
    PaperPlot,
    as_slow,
    counted_attacks,
    permuted_slower,
    relearning_points,
    score_label,
    shown_panels,
    slower,
)
from undo_jax.report.studies import PaperPoint, Study
from undo_jax.report.tables import sentence

TITLE = "Distillation robustifies unlearning"
LOOKS = {"unlearn-only": Look(WARM), FRESH: Look(PURPLE), "data filtering": ORACLE}


def methods(study: Study) -> list[str]:
    """Returns the methods of an experiment: models that are there alone and distilled."""
    return [m for m in study.models if f"{m}, distilled" in study.models]


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields forget scores by relearning step, of true and permuted answers, by method."""
    for study in studies:
        for method in methods(study):
            models = (method, f"{method}, distilled", "oracle")
            for line, model in zip(LOOKS, models, strict=True):
                yield from relearning_points(study, model, line, f"{{}}: {method}")


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes a row per setting, and one for permuted answers if any; a column per method."""
    columns = list(dict.fromkeys(method for study in studies for method in methods(study)))
    rows = []
    for study in studies:
        shown = [p for p in points if p.setting == study.setting]
        for panel in shown_panels(shown) if shown else ():
            row = [
                PaperPanel(
                    f"{panel}: {method}",
                    study,
                    f"{sentence(study.setting)}, {method}",
                    "" if i else score_label(study, panel == PERMUTED),
                )
                for i, method in enumerate(columns)
            ]
            rows.append(row)
    return PaperPlot(rows, LOOKS)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        f"Forget score against relearning steps, {counted_attacks(studies)}: "
        "the unlearned model, its distillation into a fresh student, and data filtering "
        "(the oracle). Where answers can be permuted, the row below shows the same models relearn "
        "× and ÷ with permuted answers, which none of them knew. Lines are means over seeds, bands "
        "go from the lowest to the highest."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields, for every panel: the distilled model relearns more slowly than the unlearned one."""
    for study in studies:
        for method in methods(study):
            model, name = f"{method}, distilled", f"distilled {method}"
            says = f"{name} relearns more slowly than {method}"
            yield slower(study, model, method, says, paper=True)
            says = f"{name} relearns as slowly as data filtering"
            yield as_slow(study, model, "oracle", says)
            says = f"{name} learns permuted answers more slowly than {method}, too"
            yield from permuted_slower(study, model, method, says)

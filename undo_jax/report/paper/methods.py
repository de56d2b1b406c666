"""Distillation robustifies unlearning by any method (paper §3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.drawing import PURPLE, WARM
from undo_jax.report.panels import Look
from undo_jax.report.paper import (
    FRESH,
    PERMUTED,
    permuted_slower,
    relearning_points,
    score_label,
    setting_title,
    slower,
)
from undo_jax.report.studies import PaperPoint, Study, difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Distillation robustifies unlearning"
LOOKS = {"unlearn-only": Look(WARM), FRESH: Look(PURPLE), "data filtering": panels.ORACLE}


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


def draw(studies: Sequence[Study]) -> Figure:
    """Returns a row per setting, and one for permuted answers if any; a column per method."""
    shown = list(points(studies))
    columns = list(dict.fromkeys(method for study in studies for method in methods(study)))
    by_setting = {study.setting: study for study in studies}
    rows = list(dict.fromkeys((p.setting, p.panel.partition(":")[0]) for p in shown))
    fig, axes = panels.figure(len(rows), len(columns))
    for row, (setting, panel) in zip(axes, rows, strict=True):
        study = by_setting[setting]
        for ax, method in zip(row, columns, strict=True):
            curves = panels.curves_of(shown, f"{panel}: {method}", setting)
            title = f"{setting_title(study)}, {method}"
            panels.relearning(ax, curves, LOOKS, study.forget, title)
        row[0].set_ylabel(score_label(study, panel == PERMUTED), fontsize=8.5)
    panels.legend(fig, LOOKS, len(LOOKS))
    return fig


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return (
        "Forget score against relearning steps, at each step of the strongest learning rate of "
        "each seed: the unlearned model, its distillation into a fresh student, and data filtering "
        "(the oracle). Where answers can be permuted, the row below shows the same models relearn "
        "× and ÷ with permuted answers, which none of them knew. Lines are means over seeds, bands "
        "go from the lowest to the highest."
    )


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields, for every panel: the distilled model relearns more slowly than the unlearned one."""
    for study in studies:
        for method in methods(study):
            model, name = f"{method}, distilled", f"distilled {method}"
            yield slower(study, model, method, f"{name} relearns more slowly than {method}")
            excess = difference(study.areas(model), study.areas("oracle"))
            says = f"{name} relearns as slowly as data filtering, within 0.05"
            yield Claim(says, study.setting, AREAS, excess, bound=0.05, above=False, paper=False)
            says = f"{name} learns permuted answers more slowly than {method}, too"
            yield from permuted_slower(study, model, method, says)

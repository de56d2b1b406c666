"""Distillation robustifies unlearning by any method (paper §3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.drawing import PURPLE, WARM
from undo_jax.report.panels import Look
from undo_jax.report.studies import Point, Study, difference, lines
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Distillation robustifies unlearning"
LOOKS = {
    "unlearn-only": Look(WARM),
    "Unlearn-and-Distill": Look(PURPLE),
    "data filtering": panels.ORACLE,
}
FORGET, PERMUTED = "relearning", "relearning permuted answers"


def methods(study: Study) -> list[str]:
    """The methods of an experiment: models that are there alone and distilled."""
    return [m for m in study.models if f"{m}, distilled" in study.models]


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Forget scores by relearning step, of true and permuted answers; a panel for each method."""
    found: list[Point] = []
    for setting, study in studies.items():
        for method in methods(study):
            models = (method, f"{method}, distilled", "oracle")
            for name, model in zip(LOOKS, models, strict=True):
                relearned, permuted = study.relearned(model), study.control(model, "permuted")
                found += lines(f"{FORGET}: {method}", setting, name, relearned)
                found += lines(f"{PERMUTED}: {method}", setting, name, permuted)
    return found


def draw(studies: Mapping[str, Study]) -> Figure:
    """A row per setting, and one for permuted answers where there are any; a column per method."""
    shown = points(studies)
    columns = list(dict.fromkeys(method for study in studies.values() for method in methods(study)))
    rows = list(dict.fromkeys((p.setting, p.panel.partition(":")[0]) for p in shown))
    fig, axes = panels.figure(len(rows), len(columns))
    for row, (setting, what) in enumerate(rows):
        for ax, method in zip(axes[row], columns, strict=True):
            curves = panels.curves_of(shown, f"{what}: {method}", setting)
            told = f"{sentence(setting)}, {method}"
            panels.relearning(ax, curves, LOOKS, studies[setting].forget, told)
        told = "the same, permuted answers" if what == PERMUTED else studies[setting].forget.axis
        axes[row][0].set_ylabel(told, fontsize=8.5)
    panels.legend(fig, LOOKS, len(LOOKS))
    return fig


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
    return (
        "Forget score against relearning steps, at each step of the strongest learning rate of "
        "each seed: the unlearned model, its distillation into a fresh student, and data filtering "
        "(the oracle). Where answers can be permuted, the row below shows the same models relearn "
        "× and ÷ with permuted answers, which none of them knew. Lines are means over seeds, bands "
        "go from the lowest to the highest."
    )


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """In every panel the distilled model relearns more slowly than the unlearned one."""
    found = []
    for setting, study in studies.items():
        for method in methods(study):
            alone, distilled = (study.areas(m) for m in (method, f"{method}, distilled"))
            says = f"distilled {method} relearns more slowly than {method}"
            found.append(Claim(says, setting, AREAS, difference(alone, distilled)))
            says = f"distilled {method} relearns as slowly as data filtering, within 0.05"
            excess = difference(distilled, study.areas("oracle"))
            found.append(Claim(says, setting, AREAS, excess, bound=0.05, above=False, paper=False))
            permuted = [
                study.control_areas(m, "permuted") for m in (method, f"{method}, distilled")
            ]
            if all(permuted):
                says = f"distilled {method} learns permuted answers more slowly than {method}, too"
                found.append(Claim(says, setting, AREAS, difference(*permuted), paper=False))
    return found

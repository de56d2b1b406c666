"""The paper's figures: one file each, named as the file in experiments/paper that it draws.

A file has `TITLE`; `points(studies)`, which yields the numbers behind the figure; `draw(studies)`,
which returns a matplotlib figure of them; `caption(studies)`, what it shows; and `claims(studies)`,
which yields claims with what was measured. `studies` are the experiments FIGURE-SETTING-SCALE of
one scale, one per setting.

This file has the helpers that several figures use.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.panels import Look
from undo_jax.report.studies import PaperPoint, Study, curve_points, difference
from undo_jax.report.tables import of_setting, sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORGET, PERMUTED = "relearning", "relearning permuted answers"  # panels
FRESH = "Unlearn-and-Distill"


def discover() -> dict[str, ModuleType]:
    """Returns the module of every figure by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def missing_models(study: Study, models: str) -> ValueError:
    """Returns the error of a figure whose experiment lacks some models."""
    return ValueError(
        f"{study.logs.name} has no {models}: run the experiment again with its models"
    )


def relearning_points(
    study: Study, model: str, line: str | None = None, panel: str = "{}"
) -> Iterator[PaperPoint]:
    """Yields forget scores by relearning step: of true answers, then of permuted ones.

    Args:
        study: the experiment.
        model: the attacked model.
        line: the name of its line; by default the model's.
        panel: the name of the panel, with {} for `FORGET` or `PERMUTED`.
    """
    for name, curves in (
        (FORGET, study.relearned(model)),
        (PERMUTED, study.control(model, "permuted")),
    ):
        yield from curve_points(panel.format(name), study.setting, line or model, curves)


def compute_points(
    study: Study, model: str, unit: str, panel: str, line: str | None = None
) -> Iterator[PaperPoint]:
    """Yields the robustness of a distilled model against its compute in `unit`, by seed."""
    robustness = study.robustness(model)
    for seed, compute in study.compute(model, unit).items():
        if model != "oracle" and math.isfinite(compute):
            place = compute, robustness[seed]
            yield PaperPoint(panel, study.setting, line or model, seed, *place)


def setting_title(study: Study) -> str:
    """Returns the study's setting as the beginning of a title."""
    return sentence(of_setting(study.setting))


def score_label(study: Study, permuted: bool) -> str:
    """Returns the label of an axis of forget scores, or of those of permuted answers."""
    return "the same, permuted answers" if permuted else study.forget.axis


def relearning_panel(
    ax: Axes, points: Iterable[PaperPoint], panel: str, study: Study, looks: Mapping[str, Look]
) -> None:
    """Draws the lines of a panel that have a look, in the order of their points."""
    curves = panels.curves_of([*points], panel, study.setting)
    curves = {line: curve for line, curve in curves.items() if line in looks}
    panels.relearning(ax, curves, looks, study.forget, score_label(study, panel.endswith(PERMUTED)))


def compute_axes(ax: Axes, title: str, unit: str) -> None:
    """Draws what panels of robustness against compute share: star, title and label."""
    panels.data_filtering(ax)
    panels.title(ax, title)
    ax.set_xlabel(f"distillation, % of the oracle's {unit}", fontsize=8.5)


def slower(study: Study, model: str, than: str, says: str | None = None, **options: Any) -> Claim:
    """Returns the claim that a model relearns more slowly than another, by areas.

    Args:
        study: the experiment of both.
        model: the slower one.
        than: the faster one.
        says: the claim in words; by default those above.
        options: further fields of the claim.
    """
    says = says or f"{model} relearns more slowly than {than}"
    values = difference(study.areas(than), study.areas(model))
    return Claim(says, study.setting, AREAS, values, **options)


def permuted_slower(
    study: Study, model: str, than: str, says: str, quantity: str = AREAS
) -> list[Claim]:
    """Returns the claim that permuted answers are learnt more slowly; none without that control."""
    areas = [study.control_areas(name, "permuted") for name in (than, model)]
    if not all(areas):
        return []
    return [Claim(says, study.setting, quantity, difference(*areas), paper=False)]


def keeps_retain(
    study: Study, model: str, reference: str, within: float, quantity: str, says: str
) -> Claim:
    """Returns the claim that a model's retain score is at most `within` below a reference's."""
    says = f"{says}, within {within:g}"
    values = study.retain_gap(model, reference)
    return Claim(says, study.setting, quantity, values, bound=-within, paper=False)

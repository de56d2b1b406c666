"""The paper's figures: one file each, named as the file in experiments/paper that it draws.

A file has `TITLE`; `points(studies)`, which yields the numbers behind the figure; `plot(studies,
points)`, which describes it as a `PaperPlot` or, for other shapes, `draw(studies, points)`, which
returns a matplotlib figure; `caption(studies)`, what it shows; and `claims(studies)`, which yields
claims with what was measured. `studies` are the experiments FIGURE-SETTING-SCALE of one scale, one
per setting.

This file has what several figures use.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.figure_files import figure_names, import_figure
from undo_jax.report.panels import Look
from undo_jax.report.plot import spreads
from undo_jax.report.statistics import Seed
from undo_jax.report.studies import PaperPoint, Study, curve_points, difference
from undo_jax.report.worst_case import bound_text, until

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORGET, PERMUTED = "relearning", "relearning permuted answers"  # panels
FRESH = "Unlearn-and-Distill"


@dataclass(frozen=True)
class PaperPanel:
    """Axes for the points of a panel: a curve for each line, or a mark with `mark_of`."""

    name: str  # as in the points
    study: Study
    title: str
    y: str = ""  # label
    x: str = "relearning steps"
    mark_of: Callable[[PaperPoint], Look] | None = None  # of a line, by one of its points
    all_settings: bool = False  # whether other studies' points are there, too
    loss: bool = False  # whether y is a loss, on a logarithmic axis, and not the forget score
    without: str = "text has no answers to permute"  # written if it has no points


@dataclass(frozen=True)
class PaperPlot:
    """A figure; the legend lists the looks of its lines, which are drawn in their order."""

    rows: Sequence[Sequence[PaperPanel | None]]
    looks: Mapping[str, Look]
    legend_rows: int = 1  # more if they do not fit the figure's width
    legend_columns: int | None = None  # None: as many as the rows need


def names() -> list[str]:
    """Returns the names of all figures, sorted."""
    return figure_names(sys.modules[__name__])


def find_figure(name: str) -> ModuleType:
    """Returns the module of a figure. Raises ValueError, in one line, for what is no figure."""
    studies, drawing = ("studies",), ("studies", "points")
    functions = {"points": studies, "plot or draw": drawing, "caption": studies, "claims": studies}
    return import_figure(sys.modules[__name__], name, functions, "TITLE")


# ---- drawing ----


def draw(module: ModuleType, studies: Sequence[Study], points: Sequence[PaperPoint]) -> Figure:
    """Draws a figure from its description, or by its own `draw`."""
    if hasattr(module, "draw"):
        return module.draw(studies, points)
    plot: PaperPlot = module.plot(studies, points)
    # The legend has the columns that were asked for, or as many as fit below a narrow figure.
    beside = len(plot.rows[0])
    requested_columns = plot.legend_columns or -(-len(plot.looks) // plot.legend_rows)
    width = panels.WIDTH * beside + 0.3
    columns = panels.legend_columns([*plot.looks], width, requested_columns)
    fig, axes = panels.figure(len(plot.rows), beside, -(-len(plot.looks) // columns))
    for row, described in zip(axes, plot.rows, strict=True):
        for ax, panel in zip(row, described, strict=True):
            if panel is None:
                ax.set_axis_off()
            else:
                _draw_panel(ax, panel, points, plot.looks)
    panels.legend(fig, plot.looks, columns)
    return fig


def _draw_panel(
    ax: Axes, panel: PaperPanel, points: Sequence[PaperPoint], looks: Mapping[str, Look]
) -> None:
    setting = panel.study.setting
    lines: dict[tuple[str, str], list[PaperPoint]] = {}
    for p in points:
        if p.panel == panel.name and (panel.all_settings or p.setting == setting):
            lines.setdefault((p.setting, p.model), []).append(p)
    curves = {line: spreads(lines[setting, line]) for line in looks if (setting, line) in lines}
    if panel.mark_of:
        for line in lines.values():
            panels.mark(ax, line, panel.mark_of(line[0]))
        panels.data_filtering(ax)
    elif curves:
        panels.draw_curves(ax, curves, looks)
        if panel.loss:
            panels.loss_axis(ax)
        else:
            panels.score_axis(ax, panel.study.forget)
    else:
        return panels.empty(ax, panel.without)
    panels.title(ax, panel.title)
    ax.set_xlabel(panel.x, fontsize=8.5)
    ax.set_ylabel(panel.y, fontsize=8.5)


def score_label(study: Study, permuted: bool) -> str:
    """Returns the label of an axis of forget scores, or of those of permuted answers."""
    return "the same, permuted answers" if permuted else study.forget.axis


def shown_panels(points: Iterable[PaperPoint]) -> list[str]:
    """Returns `FORGET` and, where answers were permuted, `PERMUTED`."""
    return [FORGET, *[PERMUTED] * any(PERMUTED in p.panel for p in points)]


def score_panels(
    study: Study, points: Iterable[PaperPoint], name: str = "{}"
) -> Iterator[PaperPanel]:
    """Yields the panels of `relearning_points` that the figure has in any setting."""
    for panel in shown_panels(points):
        yield PaperPanel(name.format(panel), study, score_label(study, panel == PERMUTED))


def compute_panel(
    name: str, study: Study, title: str, unit: str, mark_of: Callable[[PaperPoint], Look]
) -> PaperPanel:
    """Returns a panel of marks: robustness against compute, with a star for data filtering."""
    x = f"distillation, % of the oracle's {unit}"
    return PaperPanel(name, study, title, x=x, mark_of=mark_of)


# ---- numbers ----


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


def counted_attacks(studies: Sequence[Study]) -> str:
    """Returns which attacks count in the curves of a figure, to go on after "forget score"."""
    until_step = until(studies[0].logs.min_retain)
    return f"under the strongest attack {until_step} each step, {counting(studies)}, for each seed"


def counting(studies: Sequence[Study]) -> str:
    """Returns which attacks count, to go on after "the strongest attack"."""
    logs = [study.logs for study in studies]
    return " or ".join(dict.fromkeys(bound_text(log.retain, log.min_retain) for log in logs))


# ---- claims ----


def missing_models(study: Study, models: str) -> ValueError:
    """Returns the error of a figure whose experiment lacks some models."""
    return ValueError(
        f"{study.logs.name} has no {models}: run the experiment again with its models"
    )


def claim(
    study: Study,
    says: str,
    quantity: str,
    values: Mapping[Seed, float],
    paper: bool = False,
    finished: bool = True,
    **bound: Any,
) -> Claim:
    """Returns a claim of the paper, or by default of ours, about an experiment."""
    finished = finished and not study.logs.unfinished
    return Claim(says, study.setting, quantity, values, paper=paper, finished=finished, **bound)


def slower(
    study: Study, model: str, than: str, says: str | None = None, paper: bool = False
) -> Claim:
    """Returns the claim, by default in these words, that a model relearns more slowly, by areas."""
    says = says or f"{model} relearns more slowly than {than}"
    return claim(study, says, AREAS, difference(study.areas(than), study.areas(model)), paper=paper)


def permuted_slower(
    study: Study, model: str, than: str, says: str, quantity: str = AREAS
) -> list[Claim]:
    """Returns the claim that permuted answers are learnt more slowly; none without that control."""
    areas = [study.control_areas(name, "permuted") for name in (than, model)]
    return [claim(study, says, quantity, difference(*areas))] if all(areas) else []


def as_slow(study: Study, model: str, reference: str, says: str) -> Claim:
    """Returns the claim that a model relearns as slowly as a reference, within 0.05 by areas."""
    excess = difference(study.areas(model), study.areas(reference))
    return claim(study, f"{says}, within 0.05", AREAS, excess, bound=0.05, above=False)


def keeps_retain(
    study: Study, model: str, reference: str, within: float, quantity: str, says: str
) -> Claim:
    """Returns the claim that a model's retain score is at most `within` below a reference's."""
    says, gap = f"{says}, within {within:g}", study.retain_gap(model, reference)
    return claim(study, says, quantity, gap, bound=-within)

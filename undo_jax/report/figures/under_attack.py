"""What the strongest attack leaves of retain, and the same models under control attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.drawing import linestyle, palette, shortened
from undo_jax.report.numbers import Report
from undo_jax.report.panels import Look
from undo_jax.report.series import Panel, Series, curve, limits, logarithmic, styles
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BESIDE = 3  # panels of a row, which are still read on a page


def draw(report: Report) -> Figure:
    """Retain score at each relearning step; and a panel for each control."""
    models = report.attacked
    colours = palette(report.models)
    names = {m.name: shortened(m.name) for m in models}
    looks = {names[m.name]: Look(colours[m.name], linestyle(m, report.models)) for m in models}
    controls, _ = _controls(report)
    columns, count = 2 if len(names) <= 8 else 3, 1 + len(controls)
    beside = min(max(count, 2), BESIDE)
    rows, legend_rows = (
        -(-number // of) for number, of in ((count, beside), (len(names), columns))
    )
    fig, axes = panels.figure(rows, beside, legend_rows)
    retained, *others = axes.flat
    panels.draw_curves(retained, {names[m.name]: m.retained for m in models}, looks)
    panels.score_axis(retained, report.retain)
    panels.title(retained, report.retain.axis)
    for ax, control in zip(others, controls, strict=False):
        own = {names[m.name]: m.controls[control] for m in models if control in m.controls}
        panels.draw_curves(ax, own, looks)
        panels.score_axis(ax, report.forget)
        panels.title(ax, f"{control} (control)")
    for ax in others[len(controls) :]:
        ax.axis("off")
    for ax in (retained, *others[: len(controls)]):
        ax.set_xlabel("relearning steps", fontsize=8.5)
    panels.legend(fig, looks, columns)
    return fig


def caption(report: Report) -> str:
    """What the figure shows, exactly."""
    controls, untrained = _controls(report)
    told = (
        f"{sentence(report.retain.axis)} under the strongest attack at each step, of equally "
        "strong ones the one that keeps most: an attack that destroys the model recovers nothing "
        "of use. "
    )
    if controls:
        told += (
            f"Controls ({', '.join(controls)}) count in no strongest attack, and are measured by "
            "their own metrics. "
        )
    if untrained:
        told += f"Controls without training ({', '.join(untrained)}) are in the heat map. "
    band = "Lines are means over seeds, bands run from the lowest to the highest seed."
    return told + (band if report.several_seeds else "One seed.")


def series(report: Report) -> Series:
    """The numbers of the figure."""
    models, steps = report.attacked, "relearning steps"
    controls, _ = _controls(report)
    panels = [
        Panel(
            "retain",
            steps,
            f"{report.retain.axis}, under the strongest attack",
            log=logarithmic(report.retain),
            limits=limits(report.retain),
        )
    ]
    points = [p for m in models for p in curve("retain", m.name, m.seeds, m.retained)]
    for name in controls:
        panel = f"control {name}"
        panels.append(
            Panel(
                panel,
                steps,
                f"{name} (control)",
                log=logarithmic(report.forget),
                limits=limits(report.forget),
            )
        )
        for m in models:
            points += curve(panel, m.name, m.seeds, m.controls.get(name, {}))
    return Series(tuple(panels), styles(models, report), tuple(points))


def _controls(report: Report) -> tuple[list[str], list[str]]:
    """Controls that train, which have curves, and those that do not."""
    found: dict[str, bool] = {}
    for model in report.attacked:
        for name, scores in model.controls.items():
            found[name] = found.get(name, False) or len(scores) > 1
    return [n for n, trains in found.items() if trains], [
        n for n, trains in found.items() if not trains
    ]

"""Retain score under the strongest attack, and the same models under control attacks."""

from undo_jax.report.drawing import footnote
from undo_jax.report.numbers import Report
from undo_jax.report.plot import Plot, curve, score_panel, styles
from undo_jax.report.tables import sentence


def plot(report: Report) -> Plot:
    """Retain score at each relearning step, and a panel for each control that trains."""
    models = report.attacked
    title = f"{report.retain.axis}, under the strongest attack"
    panels = [score_panel("retain", report.retain, title)]
    points = [p for m in models for p in curve("retain", m.name, m.seeds, m.retained)]
    for control in _controls(report)[0]:
        panel = score_panel(f"control {control}", report.forget, f"{control} (control)")
        panels.append(panel)
        for m in models:
            points += curve(panel.name, m.name, m.seeds, m.controls.get(control, {}))
    return Plot(
        tuple(panels), styles(models, report), tuple(points), note=footnote(report, models, "*")
    )


def caption(report: Report) -> str:
    """Returns what the figure shows, exactly."""
    trained, untrained = _controls(report)
    text = (
        f"{sentence(report.retain.axis)} under the strongest attack at each step, of equally "
        "strong ones the one that retains most: an attack that destroys the model recovers nothing "
        "of use. "
    )
    if trained:
        text += (
            f"Controls ({', '.join(trained)}) never count as the strongest attack, and are "
            "measured by their own metrics. "
        )
    if untrained:
        text += f"Controls without training ({', '.join(untrained)}) are in the heat map. "
    band = "Lines are means over seeds, bands run from the lowest to the highest seed."
    return text + (band if report.several_seeds else "One seed.")


def _controls(report: Report) -> tuple[list[str], list[str]]:
    """Returns the controls that train, which have curves, and those that do not."""
    trains: dict[str, bool] = {}
    for model in report.attacked:
        for name, scores in model.controls.items():
            trains[name] = trains.get(name, False) or len(scores) > 1
    return [n for n in trains if trains[n]], [n for n in trains if not trains[n]]

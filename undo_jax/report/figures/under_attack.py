"""The strongest attacks whatever they leave of the model, and the same models under controls."""

from undo_jax.report.drawing import footnote
from undo_jax.report.numbers import Report
from undo_jax.report.plot import Plot, curve, score_panel, styles
from undo_jax.report.tables import sentence


def plot(report: Report) -> Plot | None:
    """Scores of the unbounded worst case by step, and a panel for each control that trains.

    Returns None if the report has no bound and there is no such control.
    """
    models, panels, points = report.attacked, [], []
    if report.min_retain:
        forget = f"{report.forget.axis}, whatever is retained"
        retain = f"{report.retain.axis}, at the same points"
        panels += [score_panel("unbounded", report.forget, forget, 0.0)]
        panels += [score_panel("unbounded retain", report.retain, retain, 0.0)]
        for m in models:
            points += curve("unbounded", m.name, m.seeds, m.unbounded)
            points += curve("unbounded retain", m.name, m.seeds, m.unbounded_retained)
    for control in _controls(report)[0]:
        name, title = f"control {control}", f"{control} (control)"
        panel = score_panel(name, report.forget, title, report.min_retain)
        panels.append(panel)
        for m in models:
            points += curve(panel.name, m.name, m.seeds, m.controls.get(control, {}))
    if not panels:
        return None
    return Plot(
        tuple(panels), styles(models, report), tuple(points), note=footnote(report, models, "*")
    )


def caption(report: Report) -> str:
    """Returns what the figure shows, exactly."""
    trained, untrained = _controls(report)
    text = ""
    if report.min_retain:
        text = (
            f"{sentence(report.forget.axis)} of the strongest attack at each step, whatever it "
            f"leaves of the model, and {report.retain.axis} under it: of equally strong attacks "
            "the one that retains most. An attack that destroys the model recovers nothing of use. "
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

"""Forget score under relearning (panels a and b of the paper's alpha figure)."""

from undo_jax.report.drawing import footnote, starred
from undo_jax.report.numbers import Report
from undo_jax.report.plot import Plot, curve, score_panel, styles
from undo_jax.report.tables import sentence


def plot(report: Report) -> Plot:
    """Forget score of the strongest attack at each relearning step, a curve for each model."""
    models = report.attacked
    hint = "higher" if report.forget.higher_is_better else "lower"
    title = f"{report.forget.axis}, strongest attack  ({hint} = more relearned)"
    panel = score_panel("relearning", report.forget, title)
    points = (p for m in models for p in curve(panel.name, m.name, m.seeds, m.curve))
    return Plot((panel,), styles(models, report), tuple(points), note=footnote(report, models, "*"))


def caption(report: Report) -> str:
    """Returns what the relearning figure shows, exactly."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    band = "Lines are means over seeds, bands run from the lowest to the highest seed. "
    return (
        f"{sentence(report.forget.axis)} against the steps of a relearning attack. "
        f"At each step the strongest attack counts, that is the {worst} score over all learning "
        "rates and attack data, taken for each seed. "
        + (band if report.several_seeds else "One seed, so no bands. ")
        + starred(report, "A name with *")
    ).strip()

"""Forget score under relearning (panels a and b of the paper's alpha figure), and what is kept."""

from undo_jax.report.drawing import footnote, starred
from undo_jax.report.numbers import Report
from undo_jax.report.plot import Plot, curve, score_panel, styles
from undo_jax.report.tables import sentence


def plot(report: Report) -> Plot:
    """Forget score of the worst case at each relearning step, and retain score at that point."""
    models = report.attacked
    hint = "higher" if report.forget.higher_is_better else "lower"
    title = f"{report.forget.axis}  ({hint} = more relearned)"
    retained, bound = f"{report.retain.axis}, at the same points", report.min_retain
    panels = (
        score_panel("relearning", report.forget, title, bound),
        score_panel("retain", report.retain, retained, bound),
    )
    points = [p for m in models for p in curve("relearning", m.name, m.seeds, m.curve)]
    points += [p for m in models for p in curve("retain", m.name, m.seeds, m.retained)]
    return Plot(panels, styles(models, report), tuple(points), note=footnote(report, models, "*"))


def caption(report: Report) -> str:
    """Returns what the relearning figure shows, exactly."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    band = "Lines are means over seeds, bands run from the lowest to the highest seed. "
    return (
        f"{sentence(report.forget.axis)} against the steps of a relearning attack, and "
        f"{report.retain.axis} of the same attacked models. At each step the strongest attack "
        f"{report.until} it counts, {report.counting}: the {worst} score over all learning rates "
        "and attack data, taken for each seed. "
        + (band if report.several_seeds else "One seed, so no bands. ")
        + starred(report, "A name with *")
    ).strip()

"""How fast each model relearns, as a table."""

import math

from undo_jax.report.numbers import ModelRow, Report
from undo_jax.report.statistics import Spread, bootstrap, paired
from undo_jax.report.tables import NONE, Grid, cell, filled


def grid(report: Report) -> Grid:
    """Returns a row per attacked model: relearning speed, retain score, robustness for compute.

    Empty columns are left out, e.g. areas where there is no oracle.
    """
    header = ["model", "area", "area − oracle's", "steps to a half", "retain at the last step"]
    header += ["robustness ÷ FLOPs"]
    oracle = next((m for m in report.models if m.role == "oracle" and m.curve), None)
    rows = []
    for m in report.attacked:
        last = list(m.retained.values())[-1]
        excess = NONE
        if oracle not in (None, m):
            difference = paired(m.seeds, m.area, oracle.seeds, oracle.area)
            excess = _interval(difference, sign="+")
        flops = dict(zip(m.finished_seeds, m.compute_flops.values, strict=True))
        rate = Spread()
        if not m.is_reference:
            of_seeds = (
                (r, flops.get(s, 0)) for s, r in zip(m.seeds, m.robustness.values, strict=True)
            )
            rate = Spread(tuple(r / f if f > 0 else math.nan for r, f in of_seeds))
        rows.append([m.name, _interval(m.area), excess, _half(m), cell(last), _interval(rate)])
    return filled(Grid(header, rows))


def _interval(values: Spread, sign: str = "") -> str:
    """Returns `mean [bootstrap interval]`; – where undefined."""
    if not values.finite:
        return NONE
    mean, low, high = (f"{v:{sign}.2f}" for v in (values.mean, *bootstrap(values)))
    return mean if len(values.finite) < 2 else f"{mean} [{low}, {high}]"


def _half(model: ModelRow) -> str:
    if any(math.isnan(a) for a in model.area.values):
        return NONE
    return reached(model.half, list(model.curve)[-1])


def reached(values: Spread, last: float) -> str:
    """Returns the median over seeds of when a share was reached, and how many did not reach it."""
    steps = sorted(v for v in values.values if not math.isnan(v))
    if not steps:
        return NONE
    missed, median = sum(map(math.isinf, steps)), steps[(len(steps) - 1) // 2]
    text = f"> {last:.0f}" if math.isinf(median) else f"{median:.0f}"
    partly = 0 < missed < len(steps)
    return text + (f" (not in {missed} of {len(steps)} seeds)" if partly else "")


def title(shown: Grid) -> str:
    """Returns the title of a table of speeds."""
    if "area" in shown.header:
        return "How fast each model relearns"
    return "What each model retains under attack"


def legend(report: Report, shown: Grid) -> str:
    """Returns how to read the table of speeds."""
    text = ""
    if "area" in shown.header:
        text += (
            f"Area: under the relearning curve of the strongest attack {report.until} each step, "
            f"{report.counting}, as a mean over steps, in shares: 0 is the {report.oracle} before "
            "attacks, 1 the base. Then its "
            "difference from the oracle's, seed by seed. Intervals are 95 % bootstrap intervals of "
            "the mean over seeds, narrow where seeds are few. Steps to a half: the median over "
            "seeds of the first evaluated step with a share of a half. "
        )
    text += (
        f"Retain at the last step: under the strongest attack {report.until} it, mean [lowest, "
        "highest]"
    )
    destroyed = ": an attack that destroys the model recovers nothing of use."
    text += "." if report.min_retain else destroyed
    if "robustness ÷ FLOPs" in shown.header:
        text += (
            " Robustness ÷ FLOPs: % of the oracle's robustness for each % of its pretraining FLOPs "
            "that distillation took."
        )
    return text

"""How fast each model relearns, as a table."""

import math

from undo_jax.report.numbers import Report, Row, Spread
from undo_jax.report.statistics import bootstrap, paired
from undo_jax.report.tables import NONE, Grid, cell, filled


def grid(report: Report) -> Grid:
    """A row per attacked model: how fast it relearns, what it keeps, robustness for compute.

    What no model has is left out, e.g. areas where there is no oracle.
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
            excess = _told(difference, ".2f", sign="+")
        pairs = zip(m.robustness.values, _of_seeds(m), strict=True)
        rate = Spread(tuple(r / f if f > 0 else math.nan for r, f in pairs))
        rate = Spread() if m.is_reference else rate
        rows.append(
            [m.name, _told(m.area, ".2f"), excess, _half(m), cell(last), _told(rate, ".2f")]
        )
    return filled(Grid(header, rows))


def _of_seeds(model: Row) -> tuple[float, ...]:
    """FLOPs in %, of the attacked seeds; nan where a seed's are not known."""
    known = dict(zip(model.made, model.compute_flops.values, strict=True))
    return tuple(known.get(seed, math.nan) for seed in model.seeds)


def _told(values: Spread, form: str, sign: str = "") -> str:
    """`mean [bootstrap interval]`; – where undefined."""
    if not values.finite:
        return NONE
    mean = f"{values.mean:{sign}{form}}"
    low, high = bootstrap(values)
    return mean if math.isnan(low) else f"{mean} [{low:{sign}{form}}, {high:{sign}{form}}]"


def _half(model: Row) -> str:
    if any(math.isnan(a) for a in model.area.values):
        return NONE
    return reached(model.half, list(model.curve)[-1])


def reached(values: Spread, last: float) -> str:
    """The median over seeds of when something was reached, and how many did not get there."""
    known = sorted(v for v in values.values if not math.isnan(v))
    if not known:
        return NONE
    missed, middle = sum(map(math.isinf, known)), known[(len(known) - 1) // 2]
    told = f"> {last:.0f}" if math.isinf(middle) else f"{middle:.0f}"
    some = 0 < missed < len(known)
    return told + (f" (not in {missed} of {len(known)} seeds)" if some else "")


def title(shown: Grid) -> str:
    """What a table of speeds tells."""
    if "area" in shown.header:
        return "How fast each relearns"
    return "What each keeps under attack"


def legend(report: Report, shown: Grid) -> str:
    """How to read the table of speeds."""
    text = ""
    if "area" in shown.header:
        text += (
            "Area: under the relearning curve of the strongest attack at each step, as a mean over "
            f"steps, in shares: 0 is the {report.oracle} before attacks, 1 the base. Then its "
            "difference from the oracle's, seed by seed. Intervals are 95 % bootstrap intervals of "
            "the mean over seeds, narrow where seeds are few. Steps to a half: the median over "
            "seeds of the first evaluated step with a share of a half. "
        )
    text += (
        "Retain is under the strongest attack, mean [lowest, highest]: an attack that destroys the "
        "model recovers nothing of use."
    )
    if "robustness ÷ FLOPs" in shown.header:
        text += (
            " Robustness ÷ FLOPs: % of the oracle's robustness for each % of its pretraining FLOPs "
            "that distillation took."
        )
    return text

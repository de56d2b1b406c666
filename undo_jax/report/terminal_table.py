"""The short table of a report, for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from undo_jax.report.notes import unqualified
from undo_jax.report.numbers import ModelRow, Report
from undo_jax.report.statistics import Spread
from undo_jax.report.tables import NONE, covered_seeds, percent, score, sentence

if TYPE_CHECKING:
    from rich.table import Table


def table(report: Report) -> Table:
    """Returns a short model table for a terminal of 80 columns: means, with ranges below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(
        title=Text(report.name, style="bold"),
        caption=Text(_short_legend(report)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    last = report.shown_steps[-1]
    columns = [
        ("retain\nbefore", score, [m.retain for m in report.models]),
        ("forget\nbefore", score, [m.forget for m in report.models]),
        (f"forget\nstep {last}", score, [m.curve.get(last, Spread()) for m in report.models]),
        (f"retain\nstep {last}", score, [m.retained.get(last, Spread()) for m in report.models]),
        ("robust-\nness %", percent, [_of_scale(m, m.robustness) for m in report.models]),
        ("FLOPs %", percent, [_of_scale(m, m.compute_flops) for m in report.models]),
    ]  # fmt: skip
    columns = [column for column in columns if any(values.finite for values in column[2])]
    result.add_column("model", vertical="top")
    for name, *_ in columns:
        result.add_column(name, justify="right", no_wrap=True, vertical="top")
    for i, m in enumerate(report.models):
        cells = (Text.assemble(*_lines(values[i], form)) for _, form, values in columns)
        result.add_row(m.name + " *" * m.fell_short, *cells)
    return result


def _of_scale(model: ModelRow, values: Spread) -> Spread:
    """Returns values in % of the oracle's; models that define the scale have no range."""
    return Spread((values.mean,)) if model.is_reference else values


def _lines(values: Spread, form: Callable[[float], str]) -> list[str | tuple[str, str]]:
    """Returns a terminal cell: the mean, and below it the range and for how many seeds it is."""
    if not values.finite:
        return [NONE]
    spread = f"{form(values.low)}–{form(values.high)}" if len(values.finite) > 1 else ""
    below = filter(None, [spread, covered_seeds(values)])
    return [form(values.mean), *((f"\n{text}", "dim") for text in below)]


def _short_legend(report: Report) -> str:
    """Returns how to read the terminal's table."""
    ranges = f"Mean and range over {report.seed_counts} seeds. " if report.several_seeds else ""
    last = report.shown_steps[-1]
    short = " *: did not recover its teacher's retain score on every seed."
    return " ".join(
        [
            f"{ranges}Retain: {report.retain.axis}; forget: {report.forget.axis}; at step {last} "
            f"both are those of the strongest attack {report.until} it, {report.counting}."
            f"{_scale(report)}{short * any(m.fell_short for m in report.models)}",
            *unqualified(report.cases, report.logs),
        ]
    )


def _scale(report: Report) -> str:
    """Returns what 100 % is in the terminal's table, or why no row has robustness."""
    shares = {
        "robustness": any(m.robustness.finite for m in report.models),
        "FLOPs of distillation": any(m.compute_flops.finite for m in report.models),
    }
    shown = sentence(" and ".join(name for name, defined in shares.items() if defined))
    text = f" {shown}: 100 % is the oracle." if shown else ""
    if shares["robustness"] or not report.no_robustness:
        return text
    reason, *more = report.no_robustness
    return f"{text} {'Robustness is missing: the report says why.' if more else reason}"

"""The numbers as tables, for Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from undo_jax.report.numbers import ModelRow, Report, WorstCase, adversary_order
from undo_jax.report.statistics import Spread

NONE = "–"


@dataclass(frozen=True)
class Grid:
    """A table as strings; the first `words` columns are text, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    words: int = 1


def filled(grid: Grid) -> Grid:
    """Returns the table without the columns of numbers that are empty in every row."""
    columns = [
        i
        for i in range(len(grid.header))
        if i < grid.words or any(row[i] != NONE for row in grid.rows)
    ]
    rows = [[row[i] for i in columns] for row in grid.rows]
    return Grid([grid.header[i] for i in columns], rows, grid.words)


# ---- cells ----


def score(value: float) -> str:
    """Returns a score with two decimals."""
    return _plain(f"{value:.2f}")


def percent(value: float) -> str:
    """Returns a percentage without decimals."""
    return _plain(f"{value:.0f}")


def count(value: float) -> str:
    """Returns a count: in full below 100,000, then as 1.2e11."""
    return f"{value:,.0f}" if value < 1e5 else re.sub(r"e\+?0*", "e", f"{value:.1e}")


def _plain(number: str) -> str:
    """Returns a number without a minus before a rounded zero."""
    return number.lstrip("-") if float(number) == 0 else number


def cell(values: Spread, form: Callable[[float], str] = score) -> str:
    """Returns `mean [lowest, highest]` over seeds; one seed has no range; – where undefined."""
    if not values.finite:
        return NONE
    if len(values.values) == 1:
        return form(values.mean)
    partly = f" ({covered})" if (covered := covered_seeds(values)) else ""
    return f"{form(values.mean)} [{form(values.low)}, {form(values.high)}]{partly}"


def covered_seeds(values: Spread) -> str:
    """Returns for how many seeds a value is defined: `1/2 seeds`; empty if for all."""
    total, defined = len(values.values), len(values.finite)
    return f"{defined}/{total} seeds" if defined < total else ""


def attack_name(attack: str, control: bool) -> str:
    """Returns an attack's name, which says if it is a control."""
    return f"{attack} (control)" if control else attack


# ---- tables ----


def model_grid(report: Report) -> Grid:
    """Returns a row per model: scores before and under attack, robustness, compute, recovery.

    Empty columns are left out, e.g. robustness where there is no oracle.
    """
    header = ["model", "retain before", "forget before"]
    header += [f"forget at step {step}" for step in report.shown_steps]
    header += [
        f"retain at step {report.shown_steps[-1]}",
        *["forget unbounded"] * bool(report.min_retain),
    ]
    header += ["robustness %", "compute % steps", "compute % FLOPs", "recovered"]
    return filled(Grid(header, [_model_row(m, report) for m in report.models]))


def _model_row(model: ModelRow, report: Report) -> list[str]:
    return [
        model.name,
        cell(model.retain),
        cell(model.forget),
        *(cell(model.curve.get(step, Spread())) for step in report.shown_steps),
        cell(model.retained.get(report.shown_steps[-1], Spread())),
        *[cell(model.worst_cases[0.0].forget)] * bool(report.min_retain),
        _robustness(model),
        _compute(model, model.compute_steps),
        _compute(model, model.compute_flops),
        f"{sum(model.recovered)}/{len(model.recovered)}" if model.recovered else NONE,
    ]


def _robustness(model: ModelRow) -> str:
    """Returns robustness; models that define its scale have no range over seeds."""
    values = model.robustness
    if values.finite:
        return percent(values.mean) if model.is_reference else cell(values, percent)
    return "undefined" if any(model.scaled) else NONE


def _compute(model: ModelRow, values: Spread) -> str:
    return (
        percent(values.mean) if model.role == "oracle" and values.finite else cell(values, percent)
    )


def pair_cell(forget: Spread, retain: Spread) -> str:
    """Returns mean forget and retain scores in one cell: `0.48 (0.90)`."""
    if not forget.finite:
        return NONE
    return score(forget.mean) + (f" ({score(retain.mean)})" if retain.finite else "")


def score_grid(report: Report) -> Grid:
    """Returns a row per model: its scores by metrics other than the headline."""
    header = ["model", *(metric.axis for metric in report.other_metrics)]
    rows = [
        [m.name, *(cell(m.other_scores[o.name]) for o in report.other_metrics)]
        for m in report.models
    ]
    return Grid(header, rows)


def attack_grid(report: Report) -> Grid:
    """Returns final scores by model, attack data and learning rate, as means over seeds."""
    distinct = {rate for m in report.attacked for _, rate in m.finals}
    rates = sorted(distinct, key=lambda rate: adversary_order(("", rate)))
    names = ["without training" if rate is None else f"{rate:g}" for rate in rates]
    rows = []
    for m in report.attacked:
        for data in sorted({data for data, _ in m.finals}):
            finals = [m.finals.get((data, rate)) for rate in rates]
            rows.append([m.name, data, *(_final(values) for values in finals)])
    return Grid(["model", "attack data", *names], rows, words=2)


def _final(final: WorstCase | None) -> str:
    if final is None:
        return NONE
    if not final.forget.finite:
        return "diverged"
    diverged = len(final.forget.values) - len(final.forget.finite)
    return pair_cell(*final) + (f" ({diverged} diverged)" if diverged else "")


def legend(report: Report) -> str:
    """Returns how to read the model table."""
    ranges = "mean [lowest, highest] over seeds; " if report.several_seeds else ""
    header = model_grid(report).header
    compute = any(name.startswith("compute") for name in header)
    better = "higher" if report.retain.higher_is_better else "lower"
    return (
        f"{ranges}retain: {report.retain.axis} ({better} is better); forget: "
        f"{report.forget.axis}; at step n: by the strongest attack {report.until} n relearning "
        f"steps, over learning rates and attack data, {report.counting}; retain at step n: of the "
        f"same point{', which may be of an earlier step' * bool(report.min_retain)}"
        + "; unbounded: by the strongest attack at any step, whatever it leaves of the retain score"
        * ("forget unbounded" in header)
        + "; compute: distillation as % of the oracle's pretraining" * compute
        + "; recovered: seeds that met the retain bar of distillation" * ("recovered" in header)
        + "."
    )


# ---- output ----


def markdown_table(grid: Grid) -> str:
    """Returns a grid as a Markdown table, numbers to the right."""
    rule = ["---" if i < grid.words else "---:" for i in range(len(grid.header))]
    return "\n".join(_markdown_row(row) for row in (grid.header, rule, *grid.rows))


def _markdown_row(row: Sequence[str]) -> str:
    cells = (" ".join(value.splitlines()).replace("|", "\\|") for value in row)
    return f"| {' | '.join(cells)} |"


def sentence(text: str) -> str:
    """Returns the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def of_setting(name: str) -> str:
    """Returns a setting in words: arithmetic_text_width48 is “arithmetic, text, width 48”."""
    return re.sub(r"_([a-z]+)(\d*)", lambda part: f", {part[1]} {part[2]}".rstrip(), name)


def attack_legend(report: Report) -> str:
    """Returns how to read the attack table."""
    over = ", mean over seeds" if report.several_seeds else ""
    return (
        f"{sentence(report.forget.axis)}, and in brackets {report.retain.axis}, at the last "
        f"relearning step by peak learning rate{over}."
    )


def notes(report: Report) -> list[str]:
    """Returns the report's caveats, unfinished artifacts last."""
    unfinished = ", ".join(report.unfinished)
    return [*report.notes, *([f"Unfinished, left out: {unfinished}."] if unfinished else [])]

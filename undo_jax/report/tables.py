"""The numbers as tables: for the terminal, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from undo_jax.report.analysis import adversary_order
from undo_jax.report.numbers import Report, Row, Spread

if TYPE_CHECKING:
    from rich.table import Table

NONE = "–"


@dataclass(frozen=True)
class Grid:
    """A table as strings; the first `words` columns are text, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    words: int = 1


def filled(grid: Grid) -> Grid:
    """The table without the columns of numbers that hold nothing in any row."""
    known = [any(row[i] != NONE for row in grid.rows) for i in range(len(grid.header))]
    kept = [i for i, some in enumerate(known) if some or i < grid.words]
    rows = [[row[i] for i in kept] for row in grid.rows]
    return Grid([grid.header[i] for i in kept], rows, grid.words)


# ---- cells ----


def score(value: float) -> str:
    """A score with two decimals."""
    return _plain(f"{value:.2f}")


def percent(value: float) -> str:
    """A percentage without decimals."""
    return _plain(f"{value:.0f}")


def count(value: float) -> str:
    """A count: in full below 100,000, then 1.2e11."""
    return f"{value:,.0f}" if value < 1e5 else re.sub(r"e\+?0*", "e", f"{value:.1e}")


def _plain(number: str) -> str:
    """No minus before a rounded zero."""
    return number.lstrip("-") if float(number) == 0 else number


def cell(values: Spread, form: Callable[[float], str] = score) -> str:
    """`mean [lowest, highest]` over seeds; one seed has no range; – where undefined."""
    if not values.finite:
        return NONE
    if len(values.values) == 1:
        return form(values.mean)
    missing = len(values.values) - len(values.finite)
    partly = f" ({len(values.finite)}/{len(values.values)} seeds)" if missing else ""
    return f"{form(values.mean)} [{form(values.low)}, {form(values.high)}]{partly}"


def same_or_range(values: Spread) -> str:
    """A count, usually the same for all seeds: one number, or `lowest–highest`."""
    if not values.finite:
        return NONE
    return "–".join(dict.fromkeys((count(values.low), count(values.high))))


# ---- tables ----


def model_grid(report: Report) -> Grid:
    """A row per model: scores before and under attack, robustness, compute, recovery.

    What no model has is left out, e.g. robustness where there is no oracle.
    """
    header = ["model", "retain before", "forget before"]
    header += [f"forget at step {step}" for step in report.shown_steps]
    header += ["robustness %", "compute % steps", "compute % FLOPs", "recovered"]
    return filled(Grid(header, [_model_row(m, report) for m in report.models]))


def _model_row(model: Row, report: Report) -> list[str]:
    return [
        model.name,
        cell(model.retain),
        cell(model.forget),
        *(cell(model.curve.get(step, Spread())) for step in report.shown_steps),
        _robustness(model),
        _compute(model, model.compute_steps),
        _compute(model, model.compute_flops),
        f"{sum(model.recovered)}/{len(model.recovered)}" if model.recovered else NONE,
    ]


def _robustness(model: Row) -> str:
    """The range over seeds; unlearned models and the oracle define the scale and have none."""
    values = model.robustness
    if values.finite:
        return percent(values.mean) if model.is_reference else cell(values, percent)
    return "undefined" if any(model.scaled) else NONE


def _compute(model: Row, values: Spread) -> str:
    return (
        percent(values.mean) if model.role == "oracle" and values.finite else cell(values, percent)
    )


def score_grid(report: Report) -> Grid:
    """A row per model: its scores by metrics other than the headline."""
    header = ["model", *(metric.axis for metric in report.others)]
    rows = [[m.name, *(cell(m.others[o.name]) for o in report.others)] for m in report.models]
    return Grid(header, rows)


def stage_grid(report: Report) -> Grid:
    """What was run: a row per stage and model."""
    header = ["stage", "model", "seeds", "steps", "tokens", "FLOPs"]
    rows = [
        [
            s.stage,
            s.model,
            ", ".join(map(str, s.seeds)) or NONE,
            *(same_or_range(v) for v in (s.steps, s.tokens, s.flops)),
        ]
        for s in report.stages
    ]
    return Grid(header, rows, words=2)


def attack_grid(report: Report) -> Grid:
    """Final forget score of every model, attack data and learning rate, mean over seeds."""
    found = {rate for m in report.attacked for _, rate in m.finals}
    rates = sorted(found, key=lambda rate: adversary_order(("", rate)))
    names = ["without training" if rate is None else f"{rate:g}" for rate in rates]
    rows = []
    for m in report.attacked:
        for data in sorted({data for data, _ in m.finals}):
            finals = [m.finals.get((data, rate)) for rate in rates]
            rows.append([m.name, data, *(_final(values) for values in finals)])
    return Grid(["model", "attack data", *names], rows, words=2)


def _final(values: Spread | None) -> str:
    if values is None:
        return NONE
    if not values.finite:
        return "diverged"
    lost = len(values.values) - len(values.finite)
    return score(values.mean) + (f" ({lost} diverged)" if lost else "")


def legend(report: Report) -> str:
    """How to read the model table."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    ranges = "mean [lowest, highest] over seeds; " if report.several_seeds else ""
    header = model_grid(report).header
    compute = any(name.startswith("compute") for name in header)
    return (
        f"{ranges}retain: {report.retain.axis} ({_better(report.retain.higher_is_better)} is "
        f"better); forget: {report.forget.axis}; at step n: after n relearning steps, "
        f"the {worst} over learning rates and attack data"
        + "; compute: distillation as % of the oracle's pretraining" * compute
        + "; recovered: seeds that met the retain bar of distillation" * ("recovered" in header)
        + "."
    )


def _better(higher_is_better: bool) -> str:
    return "higher" if higher_is_better else "lower"


# ---- output ----


def table(report: Report) -> Table:
    """A short model table that fits a terminal of 80 columns: means, and ranges on a dim line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(report.name, style="bold"),
        caption=Text(_short_legend(report)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    shown = list(dict.fromkeys((report.shown_steps[0], report.shown_steps[-1])))
    shares = [_shares(m) for m in report.models]
    columns = [
        ("retain\nbefore", score, [m.retain for m in report.models]),
        ("forget\nbefore", score, [m.forget for m in report.models]),
        *((f"forget\nstep {step}", score, [m.curve.get(step, Spread()) for m in report.models])
          for step in shown),
        ("robust-\nness %", percent, [robustness for robustness, _ in shares]),
        ("FLOPs %", percent, [flops for _, flops in shares]),
    ]  # fmt: skip
    columns = [column for column in columns if any(values.finite for values in column[2])]
    made.add_column("model", vertical="top")
    for name, *_ in columns:
        made.add_column(name, justify="right", no_wrap=True, vertical="top")
    for i, m in enumerate(report.models):
        cells = (Text.assemble(*_lines(values[i], form)) for _, form, values in columns)
        made.add_row(m.name + " *" * m.fell_short, *cells)
    return made


def _shares(model: Row) -> tuple[Spread, ...]:
    """Robustness and FLOPs in % of the oracle's; models that define the scale have no range."""
    shares = (model.robustness, model.compute_flops)
    return shares if not model.is_reference else tuple(Spread((s.mean,)) for s in shares)


def _lines(values: Spread, form: Callable[[float], str]) -> list[str | tuple[str, str]]:
    """A terminal cell: the mean and, where it has one, the range below it."""
    if not values.finite:
        return [NONE]
    low, high = form(values.low), form(values.high)
    return [form(values.mean), *([(f"\n{low}–{high}", "dim")] if len(values.finite) > 1 else [])]


def _short_legend(report: Report) -> str:
    """How to read the terminal's table."""
    ranges = f"Mean and range over {report.seed_counts} seeds. " if report.several_seeds else ""
    short = [m for m in report.models if m.fell_short]
    return (
        f"{ranges}Retain: {report.retain.axis}; forget: {report.forget.axis}, by the strongest "
        f"attack.{_scale(report)}"
        + (" *: did not recover its teacher's retain score on every seed." if short else "")
    )


def _scale(report: Report) -> str:
    """What 100 % is in the terminal's table, or why there is no robustness in any row."""
    shares = {
        "robustness": any(m.robustness.finite for m in report.models),
        "FLOPs of distillation": any(m.compute_flops.finite for m in report.models),
    }
    found = sentence(" and ".join(name for name, known in shares.items() if known))
    told = f" {found}: 100 % is the oracle." if found else ""
    if shares["robustness"] or not report.no_robustness:
        return told
    why, *others = report.no_robustness
    return f"{told} {why if not others else 'Robustness is missing: the report says why.'}"


def markdown_table(grid: Grid) -> str:
    """A grid as a Markdown table, numbers to the right."""
    rule = ["---" if i < grid.words else "---:" for i in range(len(grid.header))]
    return "\n".join(_markdown_row(row) for row in (grid.header, rule, *grid.rows))


def _markdown_row(row: Sequence[str]) -> str:
    cells = (" ".join(value.splitlines()).replace("|", "\\|") for value in row)
    return f"| {' | '.join(cells)} |"


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def of_setting(name: str) -> str:
    """A setting in words: arithmetic_text_width48 is “arithmetic, text, width 48”."""
    return re.sub(r"_([a-z]+)(\d*)", lambda part: f", {part[1]} {part[2]}".rstrip(), name)


def attack_legend(report: Report) -> str:
    """How to read the attack table."""
    over = ", mean over seeds" if report.several_seeds else ""
    return (
        f"{sentence(report.forget.axis)} at the last relearning step by peak learning rate{over}."
    )


def notes(report: Report) -> list[str]:
    """The report's caveats, unfinished artifacts last."""
    unfinished = ", ".join(report.unfinished)
    return [*report.notes, *([f"Unfinished, left out: {unfinished}."] if unfinished else [])]

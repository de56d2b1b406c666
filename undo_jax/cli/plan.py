"""What `undo-jax run --plan` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from undo_jax.logs.log import format_number
from undo_jax.runner.dry_run import PlanRow, RunPlan
from undo_jax.runtime.device_memory import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

NONE = "–"
UNKNOWN = "?"
WIDTH = 18  # of the names of models


def table(name: str, plan: RunPlan) -> Table:
    """A line for each program, and the totals, in 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    plan_table = Table(
        title=Text(f"{name}: what a run would do", style="bold"),
        caption=Text(legend(plan)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        pad_edge=False,
        show_footer=True,
    )
    rows = plan.rows
    largest = max((row.bytes for row in rows), default=0)
    columns: list[tuple[str, str, Callable[[PlanRow], str]]] = [  # header, total, cell
        ("kind", "all", lambda row: row.kind),
        ("models", "", lambda row: shortened(row.names)),
        ("new", str(sum(row.new for row in rows)), lambda row: str(row.new)),
        ("reused", str(sum(row.reused for row in rows)), lambda row: str(row.reused)),
        ("trials", _count(sum(row.trials for row in rows)), lambda row: _count(row.trials)),
        ("steps", "", lambda row: ("≤ " if row.stops else "") + _count(row.steps)),
        ("FLOPs", format_number(sum(row.flops for row in rows)), lambda r: format_number(r.flops)),
        ("time", duration(plan.seconds) if plan.is_timed else UNKNOWN, _time),
        ("memory", _bytes(largest), lambda row: _bytes(row.bytes)),
    ]
    for number, (header, total, _) in enumerate(columns):
        side = "left" if number < 2 else "right"
        plan_table.add_column(header, total, justify=side, no_wrap=True)
    for row in rows:
        plan_table.add_row(*(cell(row) for *_, cell in columns))
    return plan_table


def shortened(names: Sequence[str]) -> str:
    """As many names as have place, and the number of the others."""
    for count in range(len(names), 0, -1):
        more = f" +{len(names) - count}" if count < len(names) else ""
        if len(text := ", ".join(names[:count]) + more) <= WIDTH:
            return text
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return f"{names[0][: WIDTH - 1 - len(more)]}…{more}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, e.g. 42 s, 7.5 min, 3.2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "< 1 s"


def legend(plan: RunPlan) -> str:
    """Explains the numbers, in a few lines."""
    rows = plan.rows
    lines = [f"memory: at least, of {format_bytes(plan.bytes)} on each of {plan.devices} "
             f"{plan.device}"]  # fmt: skip
    if any(row.stops for row in rows):
        lines.append("≤: at most, a stop rule may end it earlier")
    if any(row.seconds for row in rows):
        lines.append("time: as finished trainings in this workdir that are alike took")
    if not plan.is_timed:
        lines.append("?: no training that is alike has finished in this workdir")
    for row in rows:
        if row.cached:
            percent, size = f"{100 * row.cached.share:.0f} %", format_bytes(row.cached.bytes)
            names = shortened(row.names)
            lines.append(f"--cache-teachers: {percent} of these FLOPs, {size} on disk: {names}")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number:,}" if number else NONE


def _bytes(number: float) -> str:
    return format_bytes(number) if number else NONE


def _time(row: PlanRow) -> str:
    if row.seconds is None:
        return UNKNOWN
    return duration(row.seconds) if row.seconds else NONE

"""What `undo-jax run --plan` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from undo_jax.logs.log import short
from undo_jax.runner.dry_run import Planned, Row
from undo_jax.runtime.device_memory import text as format_bytes

if TYPE_CHECKING:
    from rich.table import Table

NONE = "–"
WIDTH = 18  # of the names of models
BASES = {  # of an estimated time: its mark in the table, and its line in the legend
    "records": (
        "ʳ",
        "as trainings took that are finished here and alike; those with a stop rule end as early",
    ),
    "measured": (
        "ᵐ",
        "a few steps and an evaluation measured on these devices, and compilation",
    ),
    "FLOPs": (
        "ᶠ",
        "FLOPs at the speed of a matrix product, too little: measuring would take long",
    ),
}


def table(name: str, planned: Planned) -> Table:
    """Returns a table of 80 columns: a line for each program, and the totals."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    plan_table = Table(
        title=Text(f"{name}: what a run would do", style="bold"),
        caption=Text(legend(planned)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        pad_edge=False,
        show_footer=True,
    )
    columns: list[tuple[str, Callable[[Row], str], str]] = [
        ("kind", lambda row: row.kind, "left"),
        ("models", lambda row: shortened(row.names), "left"),
        ("new", lambda row: str(row.made), "right"),
        ("reused", lambda row: str(row.reused), "right"),
        ("mem-\nbers", lambda row: _count(row.members), "right"),
        ("steps", _steps, "right"),
        ("FLOPs", lambda row: short(row.flops), "right"),
        ("time", _time, "right"),
        ("memory", lambda row: _memory(row.bytes), "right"),
    ]
    for (header, _, side), total in zip(columns, _totals(planned), strict=True):
        plan_table.add_column(header, total, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for row in planned.rows:
        plan_table.add_row(*(cell(row) for _, cell, _ in columns))
    return plan_table


def shortened(names: Sequence[str]) -> str:
    """Returns as many names as have place, and the number of the others."""
    for count in range(len(names), 0, -1):
        more = f" +{len(names) - count}" if count < len(names) else ""
        if len(text := ", ".join(names[:count]) + more) <= WIDTH:
            return text
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return f"{names[0][: WIDTH - 1 - len(more)]}…{more}"


def duration(seconds: float) -> str:
    """Returns seconds in the unit that suits them, e.g. 42 s, 7.5 min, 3.2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "< 1 s"


def legend(planned: Planned) -> str:
    """Returns what the numbers of the table are, in a few lines."""
    rows = planned.rows
    lines = [
        f"memory: at least, of {format_bytes(planned.bytes)} on each of {planned.devices} "
        f"{planned.device}"
    ]
    if any(row.stops for row in rows):
        lines.append("≤: at most, a stop rule may end it earlier")
    for basis, (mark, meaning) in BASES.items():
        if any(row.basis == basis for row in rows):
            lines.append(f"{mark}: {meaning}")
    for row in rows:
        if row.cached:
            lines.append(
                f"--cache-teachers: {100 * row.cached.share:.0f} % of these FLOPs, "
                f"{format_bytes(row.cached.bytes)} on disk: {shortened(row.names)}"
            )
    return "\n".join(lines)


def _totals(planned: Planned) -> list[str]:
    """Returns the last line of the table."""
    rows = planned.rows
    at_most = "≤ " if any(row.stops and row.basis != "records" for row in rows) else ""
    return [
        "all",
        "",
        str(sum(row.made for row in rows)),
        str(sum(row.reused for row in rows)),
        _count(sum(row.members for row in rows)),
        "",
        short(sum(row.flops for row in rows)),
        at_most + duration(planned.seconds),
        _memory(max((row.bytes for row in rows), default=0)),
    ]


def _memory(count: float) -> str:
    return format_bytes(count) if count else NONE


def _count(number: int) -> str:
    return f"{number:,}" if number else NONE


def _steps(row: Row) -> str:
    return ("≤ " if row.stops else "") + _count(row.steps)


def _time(row: Row) -> str:
    mark, _ = BASES.get(row.basis, (" ", ""))
    return duration(row.seconds) + mark if row.made else NONE

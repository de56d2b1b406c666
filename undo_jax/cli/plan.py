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
WIDTH = 18  # of the names of models
MARKS = {"records": "ʳ", "measured": "ᵐ", "FLOPs": "ᶠ"}
MEANINGS = {
    "records": "as trainings took that are finished here and alike; those with a stop rule end as "
    "early",
    "measured": "a few steps and an evaluation measured on these devices, and compilation",
    "FLOPs": "FLOPs at the speed of a matrix product, too little: measuring would take long",
}


def table(name: str, planned: RunPlan) -> Table:
    """A line for each program, and the totals, in 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(f"{name}: what a run would do", style="bold"),
        caption=Text(legend(planned)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        pad_edge=False,
        show_footer=True,
    )
    rows, total = planned.rows, _total(planned)
    columns: list[tuple[str, Callable[[PlanRow], str]]] = [
        ("kind", lambda row: row.kind),
        ("models", lambda row: shortened(row.names)),
        ("new", lambda row: str(row.made)),
        ("reused", lambda row: str(row.reused)),
        ("mem-\nbers", lambda row: _count(row.members)),
        ("steps", _steps),
        ("FLOPs", lambda row: format_number(row.flops)),
        ("time", _time),
        ("memory", lambda row: format_bytes(row.bytes) if row.bytes else NONE),
    ]
    for number, (header, _) in enumerate(columns):
        side = "left" if number < 2 else "right"
        made.add_column(header, total[number], justify=side, no_wrap=True)
    for one in rows:
        made.add_row(*(cell(one) for _, cell in columns))
    return made


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


def legend(planned: RunPlan) -> str:
    """What the numbers are, in a few lines."""
    rows = planned.rows
    said = [f"memory: at least, of {format_bytes(planned.bytes)} on each of {planned.devices} "
            f"{planned.device}"]  # fmt: skip
    if any(row.stops for row in rows):
        said.append("≤: at most, a stop rule may end it earlier")
    said += [f"{MARKS[b]}: {MEANINGS[b]}" for b in MEANINGS if any(r.basis == b for r in rows)]
    for one in rows:
        if one.cached:
            less, size = f"{100 * one.cached.share:.0f} %", format_bytes(one.cached.bytes)
            whose = shortened(one.names)
            said.append(f"--cache-teachers: {less} of these FLOPs, {size} on disk: {whose}")
    return "\n".join(said)


def _total(planned: RunPlan) -> list[str]:
    rows = planned.rows
    new, reused = sum(row.made for row in rows), sum(row.reused for row in rows)
    members, cost = sum(row.members for row in rows), sum(row.flops for row in rows)
    at_most = "≤ " if any(row.stops and row.basis != "records" for row in rows) else ""
    largest = max((row.bytes for row in rows), default=0)
    return ["all", "", str(new), str(reused), _count(members), "", format_number(cost),
            at_most + duration(planned.seconds),
            format_bytes(largest) if largest else NONE]  # fmt: skip


def _count(number: int) -> str:
    return f"{number:,}" if number else NONE


def _steps(row: PlanRow) -> str:
    return ("≤ " if row.stops else "") + _count(row.steps)


def _time(row: PlanRow) -> str:
    return duration(row.seconds) + MARKS.get(row.basis, " ") if row.made else NONE

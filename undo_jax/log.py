"""Progress on the terminal while a stage trains, and its records as JSON lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@dataclass(frozen=True)
class Target:
    """Where the records of one member go, and the fields that every one of them carries."""

    folder: epath.Path
    tags: Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """The open log of one training loop, a target for each member. Only process 0 writes."""

    targets: Sequence[Target]
    files: Mapping[epath.Path, IO[str]]
    bar: Progress
    task: TaskID

    def record(self, member: int, **fields: Any) -> None:
        """Append one line to the member's metrics.jsonl."""
        target = self.targets[member]
        if target.folder in self.files:
            line = json.dumps({**fields, **target.tags})
            self.files[target.folder].write(line + "\n")

    def progress(self, step: int, loss: float, rate: float) -> None:
        """Move the bar: steps done, mean training loss, tokens per second over all members."""
        self.bar.update(self.task, completed=step, loss=loss, rate=short(rate))


@contextmanager
def open_log(title: str, steps: int, targets: Sequence[Target]) -> Iterator[Log]:
    """A log for one training loop of `steps` steps; files are complete when it closes."""
    bar = Progress(  # narrower than 80 columns
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=10),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("loss {task.fields[loss]:.4f} {task.fields[rate]:>6} tok/s"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=jax.process_index() != 0,
    )
    with ExitStack() as stack:
        folders = {target.folder for target in targets} if jax.process_index() == 0 else ()
        files = {
            folder: stack.enter_context((folder / "metrics.jsonl").open("w")) for folder in folders
        }
        stack.enter_context(bar)
        yield Log(targets, files, bar, bar.add_task(title, total=steps, loss=0.0, rate=short(0)))


def short(rate: float) -> str:
    """A number in three digits, e.g. 307k; – before there is one."""
    if not rate:
        return "–"
    for unit in ("", "k", "M", "G", "T"):
        if rate < 999.5:
            return f"{rate:.3g}{unit}"
        rate /= 1000
    return f"{rate:.3g}P"

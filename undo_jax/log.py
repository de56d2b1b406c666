"""Progress on the terminal while a stage trains, and its records as JSON lines."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, TextIO

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


def print_nowhere(stream: TextIO) -> None:
    """From here on, what is printed to the stream is lost, and no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever reads no more of what is told does not stop what is told of."""
        print_nowhere(sys.stderr)


console = _Console(stderr=True, markup=False, force_jupyter=False)  # its bars need more there


@dataclass(frozen=True)
class Target:
    """Where the records of one member go, and the fields that every one of them carries."""

    folder: epath.Path | None  # None: nowhere
    tags: Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """The open log of one training loop, a target for each member. Only process 0 writes."""

    targets: Sequence[Target]
    files: Mapping[epath.Path, IO[str]]
    bar: Progress
    task: TaskID
    history: list[tuple[int, str]] = field(default_factory=list, init=False)  # (member, line)

    def record(self, member: int, **fields: Any) -> None:
        """Append one line to the member's metrics.jsonl."""
        self._write(member, json.dumps({**fields, **self.targets[member].tags}))

    def replay(self, history: Sequence[tuple[int, str]]) -> None:
        """Write what an interrupted log had recorded into this one, which has recorded nothing."""
        for member, line in history:
            self._write(member, line)

    def progress(self, step: int, loss: float, rate: float) -> None:
        """Move the bar: steps done, mean training loss, tokens per second over all members."""
        self.bar.update(self.task, completed=step, loss=loss, rate=short(rate))

    def say(self, what: str) -> None:
        """One line above the bar."""
        if not self.bar.disable:
            self.bar.console.print(f"{self.bar.tasks[0].description}: {what}", highlight=False)

    def _write(self, member: int, line: str) -> None:
        self.history.append((member, line))
        folder = self.targets[member].folder
        if folder is not None and folder in self.files:
            self.files[folder].write(line + "\n")


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
        folders = {t.folder for t in targets if t.folder} if jax.process_index() == 0 else ()
        files = {
            folder: stack.enter_context((folder / "metrics.jsonl").open("w")) for folder in folders
        }
        stack.enter_context(bar)
        yield Log(targets, files, bar, bar.add_task(title, total=steps, loss=0.0, rate=short(0)))


def last(folder: epath.Path, name: str) -> float | None:
    """The last number of this name in a folder's records, if there are any."""
    path = folder / "metrics.jsonl"
    for line in reversed(path.read_bytes().splitlines() if path.exists() else []):
        with suppress(ValueError):  # what a killed writer has left
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get(name), int | float):
                return record[name]
    return None


def short(rate: float) -> str:
    """A number in three digits, e.g. 307k; – before there is one."""
    if not rate:
        return "–"
    for unit in ("", "k", "M", "G", "T"):
        if rate < 999.5:
            return f"{rate:.3g}{unit}"
        rate /= 1000
    return f"{rate:.3g}P"

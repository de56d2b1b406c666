"""Records of a training, which sinks take, and its progress on the terminal."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn

from undo_jax.logs.eta import call_every, estimate_seconds_left, format_clock
from undo_jax.logs.sink import Sink, Tags, Target, Write, check_sink, open_sink

INTERVAL = 30.0  # seconds between two lines of progress, where there is no terminal


def discard_output(stream: TextIO) -> None:
    """From here on discards what is printed to the stream, without an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Goes on if nobody reads the output any more."""
        discard_output(sys.stderr if self.stderr else sys.stdout)


# force_jupyter: bars need more than a notebook's output has
console = _Console(stderr=True, markup=False, force_jupyter=False)  # progress and messages
results = _Console(markup=False, force_jupyter=False)  # the output of a command


def is_on_terminal() -> bool:
    """Returns whether messages are shown on a terminal, where bars move; CI may force colours."""
    return console.is_interactive and console.file.isatty()


@dataclass(frozen=True)
class Log:
    """The open log of one training loop. Only process 0 writes.

    Args:
        targets: a target and tags for each trial; a trial without a target is not recorded.
        writes: the open sinks of each target.
        bar: the progress bar.
        task: the bar's only task.
    """

    targets: Sequence[tuple[Target | None, Tags]]
    writes: Mapping[Target, Sequence[Write]]
    bar: Progress
    task: TaskID
    before: int = 0  # steps of earlier loops, if one bar shows several
    history: list[tuple[int, str]] = field(default_factory=list, init=False)  # (trial, record)
    seen: deque[tuple[float, int]] = field(default_factory=deque, init=False)  # (time, steps)

    def record(self, trial: int, **fields: Any) -> None:
        """Gives one record of a trial to the sinks."""
        self._write(trial, json.dumps({**fields, **self.targets[trial][1]}))

    def replay(self, history: Sequence[tuple[int, str]]) -> None:
        """Writes the records of an interrupted log into this one, which has no records yet."""
        for trial, record in history:
            self._write(trial, record)

    def progress(self, step: int, loss: float, rate: float) -> None:
        """Moves the bar.

        Args:
            step: steps done.
            loss: mean training loss.
            rate: tokens per second over all trials.
        """
        done, total = self.before + step, self._shown.total
        self.seen.append((time.monotonic(), done))
        left = format_clock(estimate_seconds_left(self.seen, int(total or 0)))
        self._update(
            done,
            at=f"{done}/{total}",
            loss=f"loss {loss:.4f}",
            speed=f" {format_number(rate):>6} tok/s",
            left=f"eta {left}",
        )

    def ends(self, reason: str) -> None:
        """Fills the bar; `reason` says why training ends, if it is before the last step."""
        total = self._shown.total
        ending = {"at": reason, "speed": ""} if reason else {"at": f"{total}/{total}"}
        self._update(total, **ending, left="")
        if self.bar.disable:
            self.print_progress("ends,")

    def print_progress(self, word: str = "step") -> None:
        """Prints one line of progress."""
        shown = self._shown
        status = " ".join("{at} {loss}{speed}".format(**shown.fields).split())
        left = shown.fields["left"] or f"after {format_clock(shown.finished_time)}"
        age = time.monotonic() - self.seen[-1][0] if self.seen and shown.fields["left"] else 0.0
        if age > INTERVAL:  # it evaluates, or compiles
            left = f"last record {format_clock(age)} ago"
        self.say(f"{word} {status}, {left}")

    def say(self, message: str) -> None:
        """Prints one line above the bar, or without one."""
        if jax.process_index() == 0:
            line = f"{self._shown.description}: {message}"
            console.print(line, highlight=False, soft_wrap=True)

    def _update(self, done: float | None, **fields: Any) -> None:
        self.bar.update(self.task, completed=done, **fields)

    @property
    def _shown(self) -> Task:
        return self.bar.tasks[0]

    def _write(self, trial: int, record: str) -> None:
        self.history.append((trial, record))
        target, tags = self.targets[trial]
        if target and (writes := self.writes.get(target)):
            fields = {n: value for n, value in json.loads(record).items() if n not in tags}
            for write in writes:
                write(tags, fields)


@contextmanager
def open_log(
    title: str,
    steps: int,
    targets: Sequence[tuple[Target | None, Tags]],
    sinks: Iterable[Sink],
    model_names: str = "",
    interval: float = INTERVAL,
) -> Iterator[Log]:
    """Opens a log for one training loop; what sinks write is complete when it closes.

    A terminal shows a bar. Elsewhere lines are printed at the start, at intervals and at the end.

    Args:
        title: what the bar or the lines begin with.
        steps: the number of steps of the loop.
        targets: a target and tags for each trial, see `Log`.
        sinks: the sinks that take the records; duplicates are dropped.
        model_names: the models that are trained, for the lines.
        interval: seconds between two lines.

    Raises:
        ValueError: for a sink that is not one.
    """
    bar = Progress(  # narrower than 80 columns
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[at]} {task.fields[loss]}{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        disable=not is_on_terminal() or jax.process_index() != 0,
    )
    recorded = dict.fromkeys(t for t, _ in targets if t) if jax.process_index() == 0 else {}
    distinct: list[Sink] = []
    for sink in sinks:  # compared by equality: a sink may have no hash
        if sink not in distinct:
            check_sink(sink)
            distinct.append(sink)
    with ExitStack() as stack:
        writes = {
            target: [stack.enter_context(open_sink(sink, target)) for sink in distinct]
            for target in recorded
        }
        stack.enter_context(bar)
        title = f"{title} ({model_names})" if model_names and bar.disable else title
        fields: Any = {"at": f"0/{steps}", "loss": "", "speed": "", "left": "starting"}
        log = Log(targets, writes, bar, bar.add_task(title, total=steps, **fields))
        if bar.disable:
            log.say(f"starts, {steps} steps")
            stack.enter_context(call_every(interval, log.print_progress))
        yield log


@contextmanager
def show_waiting(reason: str, interval: float = INTERVAL) -> Iterator[None]:
    """Shows on a terminal, while the block runs, for what and how long the user waits.

    Elsewhere a line is printed every `interval` seconds.
    """
    start = time.monotonic()

    def print_line() -> None:
        console.print(f"{reason}: {format_clock(time.monotonic() - start)}", soft_wrap=True)

    if not is_on_terminal():
        with call_every(interval, print_line):
            yield
        return
    bar = Progress(
        TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )
    with bar:
        bar.add_task(reason, total=None)
        yield


def read_last_number(
    folder: epath.Path, name: str, after: int = 0, tags: Tags | None = None
) -> float | None:
    """Returns the last number of this name in a folder's records of steps after one, or None.

    With `tags`, only records that have them count.
    """
    path = folder / "metrics.jsonl"
    for line in reversed(path.read_bytes().splitlines() if path.exists() else []):
        with suppress(ValueError):  # a line that a killed process has not completed
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get(name), int | float):
                continue
            if not (tags or {}).items() <= record.items():
                continue
            return record[name] if record.get("step", after) > after else None
    return None


def format_number(number: float) -> str:
    """Formats a number in three digits, e.g. 307k; – for 0, before there is one."""
    if not number:
        return "–"
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}P"


def format_seconds(seconds: float) -> str:
    """Formats seconds in three digits, below one of them in ms, e.g. 531 ms, 2.69 s."""
    if seconds < 0.9995:
        return f"{format_number(1e3 * seconds)} ms"
    return f"{format_number(seconds)} s"

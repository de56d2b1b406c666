"""Progress on the terminal while a stage trains, and its records, which sinks take."""

import inspect
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn

from undo_jax.logs.eta import call_every, estimate_seconds_left, format_clock

HALF_MINUTE = 30.0  # seconds between two lines of what goes on, where there is no terminal


def discard_output(stream: TextIO) -> None:
    """From here on, what is printed to the stream is lost, and no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever reads no more of what is told does not stop what is told of."""
        discard_output(sys.stderr if self.stderr else sys.stdout)


# force_jupyter: bars need more than a notebook's output has
console = _Console(stderr=True, markup=False, force_jupyter=False)  # what goes on
results = _Console(markup=False, force_jupyter=False)  # what was asked for


def is_on_terminal() -> bool:
    """Whether what goes on is shown on a terminal, where bars move. Colours may be forced in CI."""
    return console.is_interactive and console.file.isatty()


Tags = Mapping[str, Any]  # fields of every record of one member, e.g. its learning rate
Write = Callable[[Tags, Mapping[str, Any]], None]  # takes one record: its tags, its other fields


@dataclass(frozen=True, eq=False)
class Target:
    """What a sink is opened for: one artifact in training."""

    folder: epath.Path  # the artifact's; there is config.json, and nothing else
    members: Sequence[Tags]  # of each that trains for it
    experiment: str  # its name
    training: str  # a name for this training alone, which it keeps when it goes on


Sink = Callable[[Target], AbstractContextManager[Write]]
GIVE = "give a context manager that yields write(tags, fields)"


@dataclass(frozen=True)
class Log:
    """The open log of one training loop: for each member a target and tags. Only process 0 writes.

    A member without a target is not recorded.
    """

    targets: Sequence[tuple[Target | None, Tags]]
    writes: Mapping[Target, Sequence[Write]]
    bar: Progress
    task: TaskID
    before: int = 0  # steps of loops before, where one bar is of several
    history: list[tuple[int, str]] = field(default_factory=list, init=False)  # (member, record)
    seen: deque[tuple[float, int]] = field(default_factory=deque, init=False)  # (time, steps)

    def record(self, member: int, **fields: Any) -> None:
        """Give one record of a member to the sinks."""
        self._write(member, json.dumps({**fields, **self.targets[member][1]}))

    def replay(self, history: Sequence[tuple[int, str]]) -> None:
        """Write what an interrupted log had recorded into this one, which has recorded nothing."""
        for member, record in history:
            self._write(member, record)

    def progress(self, step: int, loss: float, rate: float) -> None:
        """Move the bar: steps done, mean training loss, tokens per second over all members."""
        done, total = self.before + step, self._shown.total
        self.seen.append((time.monotonic(), done))
        left = format_clock(estimate_seconds_left(self.seen, int(total or 0)))
        at, lost, speed = f"{done}/{total}", f"loss {loss:.4f}", f" {format_number(rate):>6} tok/s"
        told = {"at": at, "loss": lost, "speed": speed, "left": f"eta {left}"}
        self._update(done, told)

    def ends(self, how: str) -> None:
        """The bar is full; `how` says why, where that is before the last step."""
        total = self._shown.total
        told = {"at": how, "speed": ""} if how else {"at": f"{total}/{total}"}
        self._update(total, {**told, "left": ""})
        if self.bar.disable:
            self.tell("ends,")

    def tell(self, what: str = "step") -> None:
        """One line of how far it is."""
        shown = self._shown
        told = " ".join("{at} {loss}{speed}".format(**shown.fields).split())
        left = shown.fields["left"] or f"after {format_clock(shown.finished_time)}"
        waits = time.monotonic() - self.seen[-1][0] if self.seen and shown.fields["left"] else 0.0
        if waits > HALF_MINUTE:  # it evaluates, or compiles
            left = f"last record {format_clock(waits)} ago"
        self.say(f"{what} {told}, {left}")

    def say(self, what: str) -> None:
        """One line above the bar, or without one."""
        if jax.process_index() == 0:
            console.print(f"{self._shown.description}: {what}", highlight=False, soft_wrap=True)

    def _update(self, done: float | None, fields: Any) -> None:
        self.bar.update(self.task, completed=done, **fields)

    @property
    def _shown(self) -> Task:
        return self.bar.tasks[0]

    def _write(self, member: int, record: str) -> None:
        self.history.append((member, record))
        target, tags = self.targets[member]
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
    of: str = "",
    interval: float = HALF_MINUTE,
) -> Iterator[Log]:
    """A log for one training loop of `steps` steps; what sinks write is complete when it closes.

    A terminal has a bar. Elsewhere lines say how far it is, at the start, every `interval` seconds
    and at the end, with the models that it is `of`. Raises ValueError for what is no sink.
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
    some = dict.fromkeys(t for t, _ in targets if t) if jax.process_index() == 0 else {}
    sinks = list(sinks)
    sinks = [sink for number, sink in enumerate(sinks) if sink not in sinks[:number]]
    for sink in sinks:
        check_sink(sink)
    with ExitStack() as stack:
        writes = {t: [stack.enter_context(_opened(sink, t)) for sink in sinks] for t in some}
        stack.enter_context(bar)
        title = f"{title} ({of})" if of and bar.disable else title
        begun: Any = {"at": f"0/{steps}", "loss": "", "speed": "", "left": "starting"}
        log = Log(targets, writes, bar, bar.add_task(title, total=steps, **begun))
        if bar.disable:
            log.say(f"starts, {steps} steps")
            stack.enter_context(call_every(interval, log.tell))
        yield log


@contextmanager
def show_waiting(what: str, interval: float = HALF_MINUTE) -> Iterator[None]:
    """While the block runs, a line on a terminal says for what and for how long.

    Elsewhere there is one every `interval` seconds.
    """
    began = time.monotonic()

    def tell() -> None:
        console.print(f"{what}: {format_clock(time.monotonic() - began)}", soft_wrap=True)

    if not is_on_terminal():
        with call_every(interval, tell):
            yield
        return
    bar = Progress(
        TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )
    with bar:
        bar.add_task(what, total=None)
        yield


def check_sink(sink: Any) -> None:
    """Raises ValueError for what can be seen to be no sink before it is opened."""
    who = f"sink {_name(sink)}"
    if inspect.isgeneratorfunction(sink):
        raise ValueError(f"{who} is a generator function: put @contextmanager above its def")
    if error := _refusal(sink, "target"):
        raise ValueError(f"{who} is not called with a target alone ({error}): {GIVE}")


def _refusal(function: Any, *arguments: str) -> TypeError | None:
    """Why it cannot be called with these arguments; None where it can, or does not say."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        return error
    except ValueError:  # it is no Python
        return None
    return None


def _name(sink: Any) -> str:
    function = getattr(sink, "func", sink)  # of a partial
    return getattr(function, "__name__", repr(function))


@contextmanager
def _opened(sink: Sink, target: Target) -> Iterator[Write]:
    """A sink that is open for a target. Raises ValueError where it is not made as sinks are."""
    who, made = f"sink {_name(sink)}", sink(target)
    if not isinstance(made, AbstractContextManager):
        raise ValueError(f"{who} gives {made!r}: {GIVE}")
    with ExitStack() as stack:
        with _yields_once(who):
            write = stack.enter_context(made)
        if error := _refusal(write, "tags", "fields"):
            raise ValueError(f"{who} yields {write!r} ({error}): {GIVE}")
        yield write
        with _yields_once(who):
            stack.close()


@contextmanager
def _yields_once(who: str) -> Iterator[None]:
    """Raises ValueError where contextlib finds a generator that does not yield once."""
    try:
        yield
    except RuntimeError as error:
        found = {"generator didn't yield": "nothing", "generator didn't stop": "more than once"}
        if str(error) not in found:
            raise
        raise ValueError(f"{who} yields {found[str(error)]}: {GIVE}") from error


def read_last_number(folder: epath.Path, name: str, after: int = 0) -> float | None:
    """The last number of this name in a folder's records of steps after one, if there are any."""
    path = folder / "metrics.jsonl"
    for line in reversed(path.read_bytes().splitlines() if path.exists() else []):
        with suppress(ValueError):  # what a killed writer has left
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get(name), int | float):
                continue
            return record[name] if record.get("step", after) > after else None
    return None


def format_number(rate: float) -> str:
    """A number in three digits, e.g. 307k; – before there is one."""
    if not rate:
        return "–"
    for unit in ("", "k", "M", "G", "T"):
        if rate < 999.5:
            return f"{rate:.3g}{unit}"
        rate /= 1000
    return f"{rate:.3g}P"


def format_seconds(seconds: float) -> str:
    """Seconds in three digits, below one of them in ms, e.g. 531 ms, 2.69 s."""
    return (
        f"{format_number(1e3 * seconds)} ms" if seconds < 0.9995 else f"{format_number(seconds)} s"
    )

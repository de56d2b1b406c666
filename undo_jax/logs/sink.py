"""Sinks take the records of a training, each in a format of its own.

A sink is a context manager that is opened for one artifact in training, and yields a function
`write(tags, fields)` that takes one record.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from etils import epath

Tags = Mapping[str, Any]  # fields of every record of one trial, e.g. its learning rate
Write = Callable[[Tags, Mapping[str, Any]], None]  # takes one record: its tags, its other fields


@dataclass(frozen=True, eq=False)
class Target:
    """What a sink is opened for: one artifact in training."""

    folder: epath.Path  # the artifact's; it contains config.json, and nothing else
    members: Sequence[Tags]  # of each trial of the artifact
    experiment: str  # its name
    training: str  # a unique name for this training, which it keeps when it resumes


Sink = Callable[[Target], AbstractContextManager[Write]]
REMEDY = "give a context manager that yields write(tags, fields)"


def check_sink(sink: Any) -> None:
    """Raises ValueError if it can be seen, before it is opened, that this is not a sink."""
    name = _sink_name(sink)
    if inspect.isgeneratorfunction(sink):
        raise ValueError(f"{name} is a generator function: put @contextmanager above its def")
    if error := _call_error(sink, "target"):
        raise ValueError(f"{name} cannot be called with a target alone ({error}): {REMEDY}")


@contextmanager
def open_sink(sink: Sink, target: Target) -> Iterator[Write]:
    """Opens a sink for a target. Raises ValueError if it is not as sinks are."""
    name, manager = _sink_name(sink), sink(target)
    if not isinstance(manager, AbstractContextManager):
        raise ValueError(f"{name} returns {manager!r}: {REMEDY}")
    with ExitStack() as stack:
        with _check_yields_once(name):
            write = stack.enter_context(manager)
        if error := _call_error(write, "tags", "fields"):
            raise ValueError(f"{name} yields {write!r} ({error}): {REMEDY}")
        yield write
        with _check_yields_once(name):
            stack.close()


def _call_error(function: Any, *arguments: str) -> TypeError | None:
    """Returns why a function cannot be called with these arguments, None if it can."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        return error
    except ValueError:  # not written in Python: nothing is known
        return None
    return None


def _sink_name(sink: Any) -> str:
    function = getattr(sink, "func", sink)  # of a partial
    return f"sink {getattr(function, '__name__', repr(function))}"


@contextmanager
def _check_yields_once(name: str) -> Iterator[None]:
    """Raises ValueError if contextlib finds a generator that does not yield once."""
    try:
        yield
    except RuntimeError as error:
        counts = {"generator didn't yield": "nothing", "generator didn't stop": "more than once"}
        if str(error) not in counts:
            raise
        raise ValueError(f"{name} yields {counts[str(error)]}: {REMEDY}") from error


def format_tags(tags: Tags) -> str:
    """Formats tags as a name, also of a folder; no tags give an empty name."""
    return re.sub(r"[^\w.,=+-]+", "-", ",".join(f"{n}={value}" for n, value in tags.items()))


def flatten_numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record but its step; one inside another is named eval/NAME."""
    numbers: dict[str, float] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{key}": number for key, number in flatten_numbers(value).items()}
        elif name != "step":
            numbers[name] = value
    return numbers

"""Checks of an experiment's values that do not depend on what they mean."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

LARGEST, SMALLEST = (float(x) for x in (np.finfo("f4").max, np.finfo("f4").tiny))  # of fp32


def check_numbers(name: str, value: Any, seen: set[int] | None = None) -> None:
    """Checks that fp32 and int64 can hold every number in a value. Raises ValueError otherwise.

    Dataclasses in `seen`, by their ids, are not checked again.
    """
    parts: Iterable[tuple[str, Any]] = ()
    seen = set() if seen is None else seen
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if id(value) in seen:
            return
        seen.add(id(value))
        parts = ((f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, partial):
        parts = [*((f".{key}", item) for key, item in value.keywords.items()), ("", value.args)]
    elif isinstance(value, Mapping):
        parts = ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, tuple | list):
        parts = (("", item) for item in value)
    elif isinstance(value, float | np.floating) and not abs(value) <= LARGEST:
        raise ValueError(f"{name}={value}: give a finite number, as fp32 can hold")
    elif isinstance(value, float | np.floating) and 0 < abs(value) < SMALLEST:
        raise ValueError(f"{name}={value}: in fp32 that is 0: give more, or 0 itself")
    elif isinstance(value, int | np.integer) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}={value}: give a number of at most 64 bits")
    for part, inner in parts:
        check_numbers(f"{name}{part}".removeprefix("."), inner, seen)


def whole(name: str, value: Any) -> int:
    """Returns a whole number as an int. Raises ValueError for other values: 2.0, True, "2"."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name}={value!r}: give a whole number")
    return int(value)


def listed(names: Iterable[Any]) -> str:
    """Joins names for a message by commas, or by semicolons if one of them has a comma."""
    names = [str(name) for name in names]
    return ("; " if any("," in name for name in names) else ", ").join(names)


def function_name(function: Any) -> str:
    """Returns the name of a function, also inside of `partial`."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def check_function(name: str, function: Any, *arguments: str) -> None:
    """Raises ValueError unless a value is a function of these positional arguments."""
    if not callable(function):
        raise ValueError(f"{name}={function!r} is no function: import it and give it itself")
    try:
        signature = inspect.signature(function)
    except ValueError:  # not written in Python: nothing is known
        return
    called = getattr(function, "__name__", function)
    label = name if name.endswith(f"{called}") else f"{name} {called}"
    try:
        signature.bind_partial(*arguments)
    except TypeError as error:
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        takes = inspect.Signature(plain)
        raise ValueError(f"{label} takes {takes}: give it ({', '.join(arguments)})") from error
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"{label}: {error}: give it by partial({called}, ...), or a default"
        ) from error


def check_members(value: Any, base: type, *required: str) -> None:
    """Checks that a value's class defines what its base class asks for.

    Args:
        value: an instance of the base class.
        base: its methods say which arguments those of the value must take.
        required: names of further members that have no default.

    Raises:
        ValueError: for a member that is missing, or a method of other arguments.
    """
    owner, missing = type(value).__name__, object()
    names = [name for name in dir(base) if not name.startswith("_")]
    for name in (*required, *names):
        member, of_base = (inspect.getattr_static(x, name, missing) for x in (value, base))
        if member is missing or getattr(member, "__isabstractmethod__", False):
            raise ValueError(f"{owner} has no {name}: define it")
        if isinstance(of_base, property) and inspect.isfunction(member):
            raise ValueError(f"{owner}.{name} is a method: put @property above its def")
        if inspect.isfunction(of_base):
            _, *arguments = inspect.signature(of_base).parameters
            check_function(f"{owner}.{name}", getattr(value, name), *arguments)


def check_fields(owner: Any, least: float, *names: str) -> None:
    """Raises ValueError if one of the owner's fields is below `least`; None passes."""
    for name in names:
        if getattr(owner, name) is not None:
            check_at_least(name, getattr(owner, name), least)


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """Checks that all values differ. Raises ValueError otherwise."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name}={tuple(values)}: one is given twice, leave it out")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError for a value that is not one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose from {listed(choices)}")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Raises ValueError for a number below `least`."""
    if not value >= least:
        raise ValueError(f"{name}={value}: it must be at least {least}")


def check_constant(name: str, value: Any, zero: bool = False) -> None:
    """Raises ValueError for a constant of a formula that is not positive; traced ones pass."""
    if isinstance(value, int | float) and not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{name}={value}: it must be {'at least' if zero else 'above'} 0")


def check_share(name: str, value: float, zero: bool = True) -> None:
    """Raises ValueError for a share outside [0, 1), or outside (0, 1) if it may not be zero."""
    if not 0 <= value < 1 or (value == 0 and not zero):
        allowed = "of at least 0 and below 1" if zero else "between 0 and 1"
        raise ValueError(f"{name}={value}: give a share {allowed}")

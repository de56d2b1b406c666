"""Finds the commands: one file each in `undo_jax/cli/commands/`."""

import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType

from undo_jax.cli import commands

Command = Callable[..., None]


def find_commands() -> dict[str, Command]:
    """Returns each command by its name, e.g. "data pack", in the order of the overview.

    A command is the function that has the name of its file. On the command line its name has
    dashes for underscores, lacks a trailing underscore (`list_` is `list`), and follows the name of
    the folder that the file is in. Commands are sorted by their file's constant `ORDER`, then by
    name. A file that defines none is told in a line on stderr, and left out.
    """
    orders, functions = {}, {}
    prefix = f"{commands.__name__}."
    for file in pkgutil.walk_packages(commands.__path__, prefix, onerror=_skip):
        if file.ispkg:
            continue
        words = file.name.removeprefix(prefix).split(".")
        name = " ".join(word.rstrip("_").replace("_", "-") for word in words)
        try:
            module = importlib.import_module(file.name)
            command, order = _find_command(module, words[-1]), getattr(module, "ORDER", math.inf)
            if not isinstance(order, int | float):
                raise ValueError(f"its ORDER is {order!r}: give a number")
        except Exception as error:  # of one file: the other commands work
            _skip(f"{getattr(file.module_finder, 'path', '')}/{words[-1]}.py", error)
            continue
        orders[name], functions[name] = order, command
    return {name: functions[name] for name in sorted(functions, key=lambda n: (orders[n], n))}


def _find_command(module: ModuleType, name: str) -> Command:
    """Returns the function of a command's file. Raises ValueError for what is no command."""
    command = getattr(module, name, None)
    if not inspect.isroutine(command):
        raise ValueError(f"it has no function {name}: write it")
    if not inspect.getdoc(command):
        raise ValueError(f"{name} has no docstring, of which help is made: write it")
    for argument in inspect.signature(command).parameters.values():
        if argument.annotation is argument.empty:
            raise ValueError(f"the argument {argument.name} has no type: write it, e.g. str")
    return command


def _skip(place: str, error: BaseException | None = None) -> None:
    """Print that a file, or a folder, has no command."""
    error = error or sys.exc_info()[1]
    reason = error if type(error) is ValueError else f"{type(error).__name__}: {error}: correct it"
    line = " ".join(f"{place} is left out, it is no command: {reason}".split())
    print(f"undo-jax: {line}", file=sys.stderr)

"""Finds the commands: one file each in `undo_jax/cli/commands/`."""

import importlib
import math
import pkgutil
from collections.abc import Callable

from undo_jax.cli import commands

Command = Callable[..., None]


def find_commands() -> dict[str, Command]:
    """Returns each command by its name, e.g. "data pack", in the order of the overview.

    A command is the function that has the name of its file. On the command line its name has
    dashes for underscores, lacks a trailing underscore (`list_` is `list`), and follows the name of
    the folder that the file is in. Commands are sorted by their file's constant `ORDER`, then by
    name.
    """
    orders, functions = {}, {}
    prefix = f"{commands.__name__}."
    for file in pkgutil.walk_packages(commands.__path__, prefix):
        if file.ispkg:
            continue
        module = importlib.import_module(file.name)
        words = file.name.removeprefix(prefix).split(".")
        name = " ".join(word.rstrip("_").replace("_", "-") for word in words)
        functions[name] = getattr(module, words[-1])
        orders[name] = getattr(module, "ORDER", math.inf)
    return {name: functions[name] for name in sorted(functions, key=lambda n: (orders[n], n))}

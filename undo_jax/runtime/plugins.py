"""Finds plug-ins: functions that have the name of their file, in a package of such files."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def plugin_names(package: ModuleType) -> list[str]:
    """Returns the names of all files in a package of plug-ins."""
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


def find_plugin(package: ModuleType, kind: str, name: str) -> Any:
    """Returns the function in the file of this name.

    Args:
        package: the package of the plug-ins.
        kind: what a plug-in is called in a message, e.g. sink.
        name: the name of the file, and of the function in it.

    Raises:
        ValueError: if there is no such file.
    """
    names = plugin_names(package)
    if name not in names:
        raise ValueError(f"there is no {kind} {name!r}: choose from {', '.join(names)}")
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), name)

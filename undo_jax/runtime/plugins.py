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
        ValueError: if there is no such file, or it cannot be imported, or has no such function.
        ImportError: of the plug-in itself, which begins with its kind and name.
    """
    modules = {module.name: module for module in pkgutil.iter_modules(package.__path__)}
    if name not in modules:
        raise ValueError(f"there is no {kind} {name!r}: choose from {', '.join(modules)}")
    file = f"{getattr(modules[name].module_finder, 'path', package.__name__)}/{name}.py"
    try:
        function = getattr(importlib.import_module(f"{package.__name__}.{name}"), name, None)
    except Exception as error:
        if str(error).startswith(f"{kind} {name}: "):
            raise
        raise ValueError(f"{file}: {type(error).__name__}: {error}: correct it") from error
    if not callable(function):
        raise ValueError(f"{file} has no function {name}: write it")
    return function

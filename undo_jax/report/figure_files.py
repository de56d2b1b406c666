"""Imports the files of figures, and tells what is wrong with one in a line."""

import importlib.util
import pkgutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType

from undo_jax.checks import check_function


def figure_names(package: ModuleType) -> list[str]:
    """Returns the names of the files in a package of figures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def import_figure(
    package: ModuleType, name: str, functions: Mapping[str, Sequence[str]], *constants: str
) -> ModuleType:
    """Imports the file of a figure.

    Args:
        package: the package of such files.
        name: the name of the file.
        functions: those that it defines, with their arguments; "plot or draw" is one of two.
        constants: what else it defines.

    Raises:
        ValueError: if there is no such file, if it cannot be imported, or lacks something.
    """
    if name not in figure_names(package):
        raise ValueError(f"there is no {package.__path__[0]}/{name}.py, which draws it: write it")
    spec = importlib.util.find_spec(f"{package.__name__}.{name}")
    with errors_of_figure(spec.origin if spec else name):
        module = importlib.import_module(f"{package.__name__}.{name}")
    for constant in constants:
        if not hasattr(module, constant):
            raise ValueError(f"{module.__file__} has no constant {constant}: write it")
    for choice, arguments in functions.items():
        function = next((f for f in choice.split(" or ") if hasattr(module, f)), None)
        if function is None:
            raise ValueError(f"{module.__file__} has no function {choice}: write it")
        check_function(f"{module.__file__}: {function}", getattr(module, function), *arguments)
    return module


@contextmanager
def errors_of_figure(file: str | None) -> Iterator[None]:
    """Raises ValueError, one line with the place in a figure's file, for what it raises.

    ValueError and OSError, which tell what to do, stay as they are.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        place = f"{file}, line {frames[-1].lineno}" if frames else file
        raise ValueError(f"{place}: {type(error).__name__}: {error}: correct it") from error

"""Figures of a report: one file each, with `caption(report)` and `plot(report)` or `draw(report)`.

`caption` says exactly what the figure shows. `plot` describes it as a `plot.Plot`, or returns None
where there is nothing to show; the description is drawn for files and, on the page, for the mouse,
and its points are a CSV file. A figure that needs other shapes has `draw`, which returns a
matplotlib figure or None, and optionally `rows(report)`, the NamedTuples of its CSV file. A report
shows every file of this folder, in the order of their names.
"""

import importlib
import pkgutil
from types import ModuleType


def discover() -> dict[str, ModuleType]:
    """Returns each figure by the name of its file. Raises ValueError if a function is missing."""
    modules = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        modules[name] = module = importlib.import_module(f"{__name__}.{name}")
        for functions in (("caption",), ("plot", "draw")):
            if not any(callable(getattr(module, function, None)) for function in functions):
                raise ValueError(
                    f"{module.__file__} has no function {' or '.join(functions)}: write it"
                )
    return modules

"""Figures of a report: one file each, with `draw(report)` and `caption(report)`.

`draw` gives a matplotlib figure, or None where there is nothing to draw; `caption` says exactly
what the figure shows. With a third function, `series(report)`, the page also draws the figure for
the mouse, from the numbers that it returns, and offers them as a CSV file; with `rows(report)`,
which returns NamedTuples, there is a CSV file alone. A report shows every file that is here, in the
order of their names.
"""

import importlib
import pkgutil
from types import ModuleType


def discover() -> dict[str, ModuleType]:
    """Every figure by the name of its file. Raises ValueError for one without the first two."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        for function in ("draw", "caption"):
            if not callable(getattr(module, function, None)):
                raise ValueError(f"{module.__file__} has no function {function}(report): write it")
        found[name] = module
    return found

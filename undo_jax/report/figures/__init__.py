"""Figures of a report: one file each, with `caption(report)` and `plot(report)` or `draw(report)`.

`caption` says exactly what the figure shows. `plot` describes it as a `plot.Plot`, or returns None
where there is nothing to show; the description is drawn for files and, on the page, for the mouse,
and its points are a CSV file. A figure that needs other shapes has `draw`, which returns a
matplotlib figure or None, and optionally `rows(report)`, the NamedTuples of its CSV file. A report
shows every file of this folder, in the order of their names.
"""

import sys
from types import ModuleType

from undo_jax.report.figure_files import figure_names, import_figure


def names() -> list[str]:
    """Returns the names of all figures, sorted."""
    return figure_names(sys.modules[__name__])


def find_figure(name: str) -> ModuleType:
    """Returns the module of a figure. Raises ValueError, in one line, for what is no figure."""
    report = ("report",)
    return import_figure(sys.modules[__name__], name, {"caption": report, "plot or draw": report})

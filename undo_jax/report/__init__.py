"""Figures, tables and an HTML page from a workdir's logs alone.

for name in names("gs://bucket/workdir"):
    report = write("gs://bucket/workdir", name)  # into WORKDIR/report-NAME/
    rich.print(table(report))
"""

from undo_jax.report.analysis import EmptyError, analyse
from undo_jax.report.dataframe_rows import Point, Result, curves, results
from undo_jax.report.logs import names, read_logs
from undo_jax.report.numbers import Report
from undo_jax.report.report_files import UndrawnError, markdown, write
from undo_jax.report.terminal_table import table

__all__ = [
    "EmptyError",
    "Point",
    "Report",
    "Result",
    "UndrawnError",
    "analyse",
    "curves",
    "markdown",
    "names",
    "read_logs",
    "results",
    "table",
    "write",
]

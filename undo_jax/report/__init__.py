"""Figures, tables and an HTML page from a workdir's logs alone.

report = write("gs://bucket/workdir")  # into WORKDIR/report/
rich.print(table(report))
"""

from undo_jax.report.html import write
from undo_jax.report.read import Report, analyse, read_logs
from undo_jax.report.tables import markdown, table

__all__ = ["Report", "analyse", "markdown", "read_logs", "table", "write"]

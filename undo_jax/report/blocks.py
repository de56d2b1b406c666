"""Texts and tables of a report, each described once and written as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undo_jax.report.page import escape
from undo_jax.report.page import table as html_table
from undo_jax.report.tables import Grid, markdown_table


@dataclass(frozen=True)
class Paragraph:
    """A text that says how to read what is beside it."""

    text: str

    def html(self) -> str:
        return f'<p class="legend">{escape(self.text)}</p>'

    def markdown(self, level: int) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table; `wrapped` texts may take several lines."""

    grid: Grid
    label: str
    wrapped: bool = False

    def html(self) -> str:
        return html_table(self.grid, self.label, self.wrapped)

    def markdown(self, level: int) -> str:
        return markdown_table(self.grid)


@dataclass(frozen=True)
class Section:
    """Blocks under a title; on the page a `folded` one is opened by its reader."""

    title: str
    blocks: Sequence[Paragraph | Table | Section]
    folded: bool = False

    def html(self) -> str:
        body = [text for block in self.blocks if (text := block.html())]
        if self.folded:
            body = [f"<details><summary>{escape(self.title)}</summary>", *body, "</details>"]
            return "\n".join(body)
        return "\n".join([f"<h2>{escape(self.title)}</h2>", *body])

    def markdown(self, level: int = 2) -> str:
        texts = [f"{'#' * level} {self.title}", *(b.markdown(level + 1) for b in self.blocks)]
        return "\n\n".join(filter(None, texts))


def table_section(title: str, grid: Grid, *legend: str, wrapped: bool = False) -> Section:
    """Returns a section of one table, with texts below that say how to read it."""
    return Section(title, [Table(grid, title, wrapped), *map(Paragraph, legend)])

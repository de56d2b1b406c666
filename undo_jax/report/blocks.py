"""Texts and tables of a report, each described once and written as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from undo_jax.report import page
from undo_jax.report.tables import Grid, markdown_table


class Table(NamedTuple):
    """A table; `wrapped` texts may take several lines."""

    grid: Grid
    label: str
    wrapped: bool = False


class Section(NamedTuple):
    """Blocks under a title; on the page a `folded` one is opened by its reader.

    A block that is a text says how to read what is beside it.
    """

    title: str
    blocks: Sequence[str | Table | Section]
    folded: bool = False


def html(block: str | Table | Section) -> str:
    """Returns a block as HTML."""
    if isinstance(block, str):
        return f'<p class="legend">{page.escape(block)}</p>'
    if isinstance(block, Table):
        return page.table(*block)
    title, body = page.escape(block.title), map(html, block.blocks)
    if block.folded:
        return "\n".join([f"<details><summary>{title}</summary>", *body, "</details>"])
    return "\n".join([f"<h2>{title}</h2>", *body])


def markdown(block: str | Table | Section, level: int = 2) -> str:
    """Returns a block as Markdown; the title of a section has this level."""
    if isinstance(block, str):
        return block
    if isinstance(block, Table):
        return markdown_table(block.grid)
    texts = [f"{'#' * level} {block.title}", *(markdown(b, level + 1) for b in block.blocks)]
    return "\n\n".join(filter(None, texts))

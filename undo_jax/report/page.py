"""HTML pages of figures and tables, in one file each: they load nothing, and work without scripts.

Figures are SVGs. Where scripts run, those whose numbers are known are drawn anew to be read with
the mouse, tables are sorted by their headers, and files come from the page itself.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from undo_jax.report.tables import Grid

SCRIPTS = ("uPlot.iife.min.js", "numbers.js", "drawing.js", "figures.js", "tables.js")
SCRIPTS += ("downloads.js",)
NEGATIVE = re.compile(r"(?<!\w)-(?=\d)")  # its sign


@cache
def web(*names: str) -> str:
    """Files of undo_jax/web, one after the other."""
    folder = resources.files("undo_jax.report") / "web"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def css() -> str:
    return web("uPlot.min.css", "report.css")


def script() -> str:
    return f'"use strict";\n{web(*SCRIPTS)}'


def document(title: str, body: Iterable[str]) -> str:
    """A page with these parts, the empty ones left out. It may run our script and load nothing."""
    code = script()
    known = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    allowed += f"script-src 'sha256-{known}'; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{allowed}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{css()}</style></head><body><main>",
            *filter(None, body),
            "</main>",
            f"<script>{code}</script>",
            "</body></html>\n",
        ]
    )


def notes(told: Iterable[str]) -> str:
    """A list of remarks, empty without any."""
    items = "".join(f"<li>{escape(one)}</li>" for one in told)
    return f'<ul class="notes">{items}</ul>' if items else ""


def figure(
    svg: str,
    caption: str,
    files: Mapping[str, str],
    numbers: Mapping[str, Any] | None = None,
    wide=False,
) -> str:
    """A figure, its caption and its files, which lie beside the page.

    `files` are names by their kinds, "png" and "csv": a link to each, saved under that name.
    `numbers` are the text of the CSV file and, to draw the figure for the mouse, what
    `Series.plain` gives beside it. `wide` is as wide as the page, and on a phone it scrolls
    sideways.
    """
    inline = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)  # no XML declaration inside HTML
    opened = "<figure class=wide>" if wide else "<figure>"
    island = "" if numbers is None else _island(numbers)
    links = "".join(
        f' <a class="{kind}" href="{escape(name)}" download="{escape(name)}">{kind.upper()}</a>'
        for kind, name in files.items()
    )
    return (
        f'{opened}<div class="static" role="img" tabindex="0" aria-label="{escape(caption)}">'
        f"{inline}</div><figcaption>{escape(caption)}</figcaption>"
        f'{links and f"""<p class="downloads">Download{links}</p>"""}{island}</figure>'
    )


def _island(numbers: Mapping[str, Any]) -> str:
    """Numbers for the script, as JSON that cannot end its element."""
    told = json.dumps(numbers, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" class="numbers">{told}</script>'


def table(grid: Grid, label: str, wrapped: bool = False) -> str:
    """A table, whose label a screen reader says.

    `wrapped`: its texts may take several lines, and on a phone each row is a list of its cells.
    """

    def row(tag: str, cells: list[str]) -> str:
        made = []
        for i, (name, value) in enumerate(zip(grid.header, cells, strict=True)):
            kind = ' class="text"' if i < grid.words else ""
            about = ' scope="col"' if tag == "th" else f' data-label="{escape(name)}"'
            inner = escape(value) if kind else _cell(value)
            made.append(f"<{tag}{about if tag == 'th' or wrapped else ''}{kind}>{inner}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    head, body = row("th", grid.header), "\n".join(row("td", cells) for cells in grid.rows)
    kind = "sortable wrapped" if wrapped else "sortable"
    parts = f"<thead>{head}</thead>\n<tbody>{body}</tbody>"
    around = f'class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"'
    return f'<div {around}><table class="{kind}">{parts}</table></div>'


def _cell(value: str) -> str:
    """A number, its range on a second line; negative ones as the figures beside write them."""
    mean, _, spread = NEGATIVE.sub("−", value).partition(" [")
    return f"{escape(mean)}<small>[{escape(spread)}</small>" if spread else escape(value)


def escape(text: str) -> str:
    return html.escape(text, quote=True)

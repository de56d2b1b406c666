"""HTML pages of figures and tables, in one file each: they load nothing, and work without scripts.

Figures are SVGs. Where scripts run, figures with numbers are drawn for the mouse, tables are sorted
by their headers, and files are downloaded from the page itself.
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

SCRIPTS = (
    "uPlot.iife.min.js", "numbers.js", "drawing.js", "figures.js", "tables.js", "downloads.js",
)  # fmt: skip
NEGATIVE = re.compile(r"(?<!\w)-(?=\d)")  # the sign of a number


@cache
def web(*names: str) -> str:
    """Returns files of undo_jax/report/web, one after the other."""
    folder = resources.files("undo_jax.report") / "web"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def css() -> str:
    return web("uPlot.min.css", "report.css")


def script() -> str:
    return f'"use strict";\n{web(*SCRIPTS)}'


def document(title: str, body: Iterable[str]) -> str:
    """Returns a page of the non-empty parts of `body`; it runs our script and loads nothing."""
    code = script()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    content = "\n".join(filter(None, body))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{css()}</style></head><body><main>
{content}
</main>
<script>{code}</script>
</body></html>

"""


def notes(remarks: Iterable[str]) -> str:
    """Returns a list of remarks; empty without any."""
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f'<ul class="notes">{items}</ul>' if items else ""


def figure(
    svg: str,
    caption: str,
    files: Mapping[str, str],
    page_data: Mapping[str, Any] | None = None,
    wide: bool = False,
) -> str:
    """Returns a figure, its caption and links to its files, which are beside the page.

    `files` are names by their kinds, "png" and "csv". `page_data` is drawn for the mouse, see
    `Plot.page_data`. A `wide` figure is as wide as the page; on a phone it scrolls sideways.
    """
    inline = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)  # no XML declaration inside HTML
    opened = "<figure class=wide>" if wide else "<figure>"
    links = "".join(
        f' <a class="{kind}" href="{escape(name)}" download="{escape(name)}">{kind.upper()}</a>'
        for kind, name in files.items()
    )
    downloads = f'<p class="downloads">Download{links}</p>' if links else ""
    island = ""
    if page_data is not None:  # JSON that cannot end its element
        text = json.dumps(page_data, ensure_ascii=False, separators=(",", ":"))
        text = text.replace("<", "\\u003c")
        island = f'<script type="application/json" class="numbers">{text}</script>'
    return (
        f'{opened}<div class="static" role="img" tabindex="0" aria-label="{escape(caption)}">'
        f"{inline}</div><figcaption>{escape(caption)}</figcaption>{downloads}{island}</figure>"
    )


def table(grid: Grid, label: str, wrapped: bool = False) -> str:
    """Returns a table with a label for screen readers.

    Texts that are `wrapped` may take several lines; on a phone each row is a list of its cells.
    """

    def row(tag: str, cells: list[str]) -> str:
        html_cells = []
        for i, (name, value) in enumerate(zip(grid.header, cells, strict=True)):
            kind = ' class="text"' if i < grid.words else ""
            about = ' scope="col"' if tag == "th" else f' data-label="{escape(name)}"' * wrapped
            inner = escape(value) if kind else _cell(value)
            html_cells.append(f"<{tag}{about}{kind}>{inner}</{tag}>")
        return f"<tr>{''.join(html_cells)}</tr>"

    head, body = row("th", grid.header), "\n".join(row("td", cells) for cells in grid.rows)
    kind = "sortable wrapped" if wrapped else "sortable"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{kind}"><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cell(value: str) -> str:
    """Returns a number with its range on a second line; minus signs are those of the figures."""
    mean, _, spread = NEGATIVE.sub("−", value).partition(" [")
    return f"{escape(mean)}<small>[{escape(spread)}</small>" if spread else escape(value)


def escape(text: str) -> str:
    return html.escape(text, quote=True)

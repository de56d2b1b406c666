"""Writes the report: figures, summary.md and a self-contained index.html."""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from etils import epath

from undo_jax.report import figures, speed, summary, tables
from undo_jax.report.analysis import analyse
from undo_jax.report.drawing import render
from undo_jax.report.logs import read_logs
from undo_jax.report.numbers import Report

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #59636e; --line: #d9dde2;
  --page: #ffffff; --soft: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --muted: #9aa4af; --line: #3a4048; --page: #14171b; --soft: #1d2127; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p.lead, figcaption, p.legend { color: var(--muted); }
figcaption, p.legend { font-size: .875rem; }
figure { margin: 1.75rem 0 0; max-width: 47rem; }
figure div { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .75rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: .6rem; }
figure.wide { max-width: none; }
figure.wide div { overflow-x: auto; }
figure.wide svg { min-width: 44rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; line-height: 1.3; }
th.text, td.text { text-align: left; white-space: nowrap; padding-left: 0; }
table.wrapped th, table.wrapped td { text-align: left; white-space: normal; }
td small { display: block; color: var(--muted); white-space: nowrap; }
ul.notes { background: var(--soft); border-left: 3px solid #c98a1b; margin: 1.5rem 0; list-style:
  none; padding: .75rem 1rem; border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
ul.notes li + li { margin-top: .4rem; }
details { margin-top: 2.5rem; } summary { cursor: pointer; font-weight: 600; }
"""


def write(workdir: epath.PathLike, name: str) -> Report:
    """Write WORKDIR/report-NAME/ of one experiment from its logs.

    Raises FileNotFoundError where the workdir has no such experiment, and ValueError where a file
    is damaged or no attack has finished.
    """
    report = analyse(read_logs(workdir, name))
    folder = epath.Path(workdir) / f"report-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    found = figures.discover()
    drawn = {one: render(partial(module.draw, report), one) for one, module in found.items()}
    captions = {one: module.caption(report) for one, module in found.items() if drawn[one]}
    contents = {f"{one}.{kind}": data for one in captions for kind, data in drawn[one].items()}
    contents["summary.md"] = summary.markdown(report, captions).encode()
    svgs = {one: drawn[one]["svg"].decode() for one in captions}
    contents["index.html"] = page(report, svgs, captions).encode()
    for one in {*found, *_shown(folder / "summary.md")} - set(captions):
        for kind in ("png", "svg"):
            (folder / f"{one}.{kind}").unlink(missing_ok=True)
    for file, data in contents.items():
        (folder / file).write_bytes(data)
    return replace(report, files={file: folder / file for file in contents})


def _shown(summary: epath.Path) -> list[str]:
    """The figures that an earlier report shows."""
    text = summary.read_bytes().decode(errors="replace") if summary.exists() else ""
    return re.findall(r"^!\[(\w+)\]\(\1\.png\)$", text, re.MULTILINE)


def page(report: Report, svgs: Mapping[str, str], captions: Mapping[str, str]) -> str:
    """index.html as a string; it loads no other files."""
    body = [
        f"<h1>{escape(report.name)}</h1>",
        f'<p class="lead">{escape(_lead(report))}</p>',
        notes(tables.notes(report)),
        *(figure(svgs[name], captions[name]) for name in captions),
        "<h2>Every model</h2>",
        table(tables.model_grid(report)),
        f'<p class="legend">{escape(tables.sentence(tables.legend(report)))}</p>',
        "<h2>How fast each relearns</h2>",
        table(speed.grid(report)),
        f'<p class="legend">{escape(speed.legend(report))}</p>',
        *_other_scores(report),
        "<h2>What was run</h2>",
        table(tables.stage_grid(report)),
        "<details><summary>Every attack by learning rate</summary>",
        f'<p class="legend">{escape(tables.attack_legend(report))}</p>',
        table(tables.attack_grid(report)),
        "</details>",
    ]
    return document(report.name, body)


def document(title: str, body: Iterable[str]) -> str:
    """A page with these parts, the empty ones left out."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{CSS}</style></head><body>",
            *filter(None, body),
            "</body></html>\n",
        ]
    )


def _other_scores(report: Report) -> list[str]:
    return ["<h2>Other scores</h2>", table(tables.score_grid(report))] if report.others else []


def _lead(report: Report) -> str:
    last = max(step for m in report.attacked for step in m.curve)
    rates = {rate for m in report.attacked for _, rate in m.finals if rate is not None}
    count = _count(len(report.attacked), "model")
    how = f" by relearning for {last} steps at {_count(len(rates), 'learning rate')}"
    seeds = f"; seed{'s' * (len(report.seeds) > 1)} {', '.join(map(str, report.seeds))}"
    return (
        f"{count} attacked{how if rates else ' without training'}{seeds if report.seeds else ''}."
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number > 1)}"


def notes(told: Iterable[str]) -> str:
    """A list of remarks, empty without any."""
    items = "".join(f"<li>{escape(one)}</li>" for one in told)
    return f'<ul class="notes">{items}</ul>' if items else ""


def figure(svg: str, caption: str, wide: bool = False) -> str:
    """`wide`: as wide as the page, and on a phone it scrolls sideways."""
    inline = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)  # no XML declaration inside HTML
    opened = "<figure class=wide>" if wide else "<figure>"
    return (
        f'{opened}<div role="img" aria-label="{escape(caption)}">{inline}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(grid: tables.Grid, wrapped: bool = False) -> str:
    """A table; `wrapped`: its texts may take several lines."""

    def row(tag: str, cells: list[str]) -> str:
        made = [
            f'<{tag} class="text">{escape(v)}</{tag}>'
            if i < grid.words
            else f"<{tag}>{_cell(v)}</{tag}>"
            for i, v in enumerate(cells)
        ]
        return f"<tr>{''.join(made)}</tr>"

    head, body = row("th", grid.header), "\n".join(row("td", cells) for cells in grid.rows)
    kind = ' class="wrapped"' if wrapped else ""
    parts = f"<thead>{head}</thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table{kind}>{parts}</table></div>'


def _cell(value: str) -> str:
    """A number, its range on a second line."""
    mean, _, spread = value.partition(" [")
    return f"{escape(mean)}<small>[{escape(spread)}</small>" if spread else escape(value)


def escape(text: str) -> str:
    return html.escape(text, quote=True)

"""Writes the report: figures, summary.md and a self-contained index.html."""

import html
import re
from collections.abc import Mapping
from dataclasses import replace

from etils import epath

from undo_jax.report import figures, tables
from undo_jax.report.read import Report, analyse, read_logs

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
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; line-height: 1.3; }
th.text, td.text { text-align: left; white-space: nowrap; padding-left: 0; }
td small { display: block; color: var(--muted); white-space: nowrap; }
ul.notes { background: var(--soft); border-left: 3px solid #c98a1b; margin: 1.5rem 0; list-style:
  none; padding: .75rem 1rem; border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
ul.notes li + li { margin-top: .4rem; }
details { margin-top: 2.5rem; } summary { cursor: pointer; font-weight: 600; }
"""


def write(workdir: epath.PathLike) -> Report:
    """Write WORKDIR/report/ from the logs; raises ValueError if no attack has finished."""
    report = analyse(read_logs(workdir))
    folder = epath.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {f.__name__: figures.render(f, report) for f in (figures.relearning, figures.tradeoff)}
    captions = {
        "relearning": figures.relearning_caption(report),
        "tradeoff": figures.tradeoff_caption(report),
    }
    captions = {name: text for name, text in captions.items() if drawn[name]}
    contents = {
        f"{name}.{kind}": data for name, made in drawn.items() for kind, data in made.items()
    }
    contents["summary.md"] = tables.markdown(report, captions).encode()
    svgs = {name: drawn[name]["svg"].decode() for name in captions}
    contents["index.html"] = page(report, svgs, captions).encode()
    for stale in ("tradeoff.png", "tradeoff.svg"):  # of a run that still had an oracle
        if stale not in contents:
            (folder / stale).unlink(missing_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return replace(report, files={name: folder / name for name in contents})


def page(report: Report, svgs: Mapping[str, str], captions: Mapping[str, str]) -> str:
    """index.html as a string; loads nothing from elsewhere."""
    told = "".join(f"<li>{_escape(note)}</li>" for note in tables.notes(report))
    body = [
        f"<h1>{_escape(report.name)}</h1>",
        f'<p class="lead">{_escape(_lead(report))}</p>',
        f'<ul class="notes">{told}</ul>' if told else "",
        *(_figure(svgs[name], captions[name]) for name in captions),
        "<h2>Every model</h2>",
        _table(tables.model_grid(report)),
        f'<p class="legend">{_escape(tables.sentence(tables.legend(report)))}</p>',
        "<h2>What was run</h2>",
        _table(tables.stage_grid(report)),
        "<details><summary>Every attack by learning rate</summary>",
        f'<p class="legend">{_escape(tables.attack_legend(report))}</p>',
        _table(tables.attack_grid(report)),
        "</details>",
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escape(report.name)}</title>",
            f"<style>{CSS}</style></head><body>",
            *filter(None, body),
            "</body></html>\n",
        ]
    )


def _lead(report: Report) -> str:
    seeds = ", ".join(map(str, report.seeds))
    last = max(step for m in report.attacked for step in m.curve)
    rates = {rate for m in report.attacked for _, rate in m.finals}
    return (
        f"{len(report.attacked)} models attacked by relearning for {last} steps at "
        f"{len(rates)} learning rate{'s' * (len(rates) > 1)}; "
        f"seed{'s' * (len(report.seeds) > 1)} {seeds}."
    )


def _figure(svg: str, caption: str) -> str:
    inline = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)  # no XML declaration inside HTML
    return (
        f'<figure><div role="img" aria-label="{_escape(caption)}">{inline}</div>'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


def _table(grid: tables.Grid) -> str:
    def row(tag: str, cells: list[str]) -> str:
        made = [
            f'<{tag} class="text">{_escape(v)}</{tag}>'
            if i < grid.words
            else f"<{tag}>{_cell(v)}</{tag}>"
            for i, v in enumerate(cells)
        ]
        return f"<tr>{''.join(made)}</tr>"

    head, body = row("th", grid.header), "\n".join(row("td", cells) for cells in grid.rows)
    return f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'


def _cell(value: str) -> str:
    """A number, its range on a second line."""
    mean, _, spread = value.partition(" [")
    return f"{_escape(mean)}<small>[{_escape(spread)}</small>" if spread else _escape(value)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)

"""Writes the report: figures, summary.md and a self-contained index.html."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

from etils import epath

from undo_jax.report import card_tables, figures, provenance_table, speed, summary, tables
from undo_jax.report.analysis import analyse
from undo_jax.report.drawing import render
from undo_jax.report.logs import read_logs
from undo_jax.report.numbers import Report
from undo_jax.report.page import document, escape, figure, notes, table
from undo_jax.report.publishing import Publish, put
from undo_jax.report.records import Origin
from undo_jax.report.series import csv_text

MANY = 5  # learning rates that are still counted


def write(workdir: epath.PathLike, name: str, publish: Publish = put) -> Report:
    """Write WORKDIR/report-NAME/ of one experiment from its logs.

    `publish` makes the folder and writes its files. Raises FileNotFoundError where the workdir has
    no such experiment, and ValueError where a file is damaged or no attack has finished.
    """
    report = analyse(read_logs(workdir, name))
    folder = epath.Path(workdir) / f"report-{name}"
    found = figures.discover()
    drawn = {one: render(partial(module.draw, report), one) for one, module in found.items()}
    captions = {one: module.caption(report) for one, module in found.items() if drawn[one]}
    contents = {f"{one}.{kind}": data for one in captions for kind, data in drawn[one].items()}
    contents["summary.md"] = summary.markdown(report, captions).encode()
    svgs = {one: drawn[one]["svg"].decode() for one in captions}
    numbers = {one: told for one in captions if (told := _numbers(found[one], report))}
    contents |= {f"{one}.csv": told["csv"].encode() for one, told in numbers.items()}
    contents["index.html"] = page(report, svgs, captions, numbers).encode()
    earlier = _shown(folder / "summary.md")
    publish(folder, contents)
    for one in {*found, *earlier}:
        for file in (f"{one}.{kind}" for kind in ("png", "svg", "csv")):
            if file not in contents:
                (folder / file).unlink(missing_ok=True)
    return replace(report, files={file: folder / file for file in contents})


def _numbers(module: ModuleType, report: Report) -> dict[str, Any]:
    """The numbers of a figure: its CSV file, and what draws it for the mouse; empty without any."""
    if callable(getattr(module, "series", None)):
        return module.series(report).plain()
    return {"csv": csv_text(module.rows(report))} if hasattr(module, "rows") else {}


def _shown(summary: epath.Path) -> list[str]:
    """The figures that an earlier report shows."""
    text = summary.read_bytes().decode(errors="replace") if summary.exists() else ""
    return re.findall(r"^!\[(\w+)\]\(\1\.png\)$", text, re.MULTILINE)


def page(
    report: Report,
    svgs: Mapping[str, str],
    captions: Mapping[str, str],
    numbers: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> str:
    """index.html as a string; it loads no other files. Figures with numbers are read by mouse."""
    speeds = speed.grid(report)
    body = [
        f"<h1>{escape(report.name)}</h1>",
        f'<p class="lead">{escape(_lead(report))}</p>',
        notes(tables.notes(report)),
        *(_figure(name, svgs[name], captions[name], numbers.get(name)) for name in captions),
        "<h2>Every model</h2>",
        table(tables.model_grid(report), "Every model"),
        f'<p class="legend">{escape(tables.sentence(tables.legend(report)))}</p>',
        f"<h2>{speed.title(speeds)}</h2>",
        table(speeds, speed.title(speeds)),
        f'<p class="legend">{escape(speed.legend(report, speeds))}</p>',
        *_cards(report),
        *_other_scores(report),
        "<h2>What was run</h2>",
        table(tables.stage_grid(report), "What was run"),
        "<details><summary>Every attack by learning rate</summary>",
        f'<p class="legend">{escape(tables.attack_legend(report))}</p>',
        table(tables.attack_grid(report), "Every attack by learning rate"),
        "</details>",
        "<h2>How it was made</h2>",
        *_origin(report),
    ]
    return document(report.name, body)


def _figure(name: str, svg: str, caption: str, numbers: Mapping[str, Any] | None) -> str:
    files = {"png": f"{name}.png"} | ({"csv": f"{name}.csv"} if numbers else {})
    return figure(svg, caption, files, numbers)


def _cards(report: Report) -> list[str]:
    """A card for each attacked model, and what the attacks were drawn from."""
    made = []
    for m in report.attacked:
        made += [
            f"<details><summary>{escape(m.name)}: {escape(card_tables.headline(m))}</summary>",
            *(f'<p class="legend">{escape(line)}</p>' for line in card_tables.told(m)),
            table(card_tables.card_grid(report, m), f"Robustness card of {m.name}"),
            "</details>",
        ]
    return [
        "<h2>Robustness cards</h2>",
        f'<p class="legend">{escape(card_tables.legend(report))}</p>',
        *made,
        "<details><summary>What each attack searched</summary>",
        table(card_tables.space_grid(report), "What each attack searched", wrapped=True),
        "</details>",
    ]


def _origin(report: Report) -> list[str]:
    """Commands, versions and settings."""
    commands = "".join(f"<li>{_command(one)}</li>" for one in report.origins)
    return [
        commands and f'<ol class="commands">{commands}</ol>',
        f'<p class="legend made">{escape(provenance_table.versions(report))}</p>',
        "<details><summary>Every setting</summary>",
        table(provenance_table.choice_grid(report), "Every setting", wrapped=True),
        "</details>",
    ]


def _command(one: Origin) -> str:
    """A command that ended; a line of it does not break inside a word."""
    words = (f"<span>{escape(word)}</span>" for word in one.command.split(" "))
    when = escape(one.date.replace("T", " ").replace("Z", " UTC"))
    return f"ended {when} on {escape(one.devices)}<code>{' '.join(words)}</code>"


def _other_scores(report: Report) -> list[str]:
    title = "Other scores"
    return [f"<h2>{title}</h2>", table(tables.score_grid(report), title)] if report.others else []


def _lead(report: Report) -> str:
    last = max(step for m in report.attacked for step in m.curve)
    rates = sorted({rate for m in report.attacked for _, rate in m.finals if rate is not None})
    count = _count(len(report.attacked), "model")
    how = f" by relearning for {last} steps at {_count(len(rates), 'learning rate')}"
    if len(rates) > MANY:  # of searches, which draw them
        how = (
            f" by relearning for {last} steps at learning rates from {rates[0]:g} to {rates[-1]:g}"
        )
    seeds = f"; seed{'s' * (len(report.seeds) > 1)} {', '.join(map(str, report.seeds))}"
    return (
        f"{count} attacked{how if rates else ' without training'}{seeds if report.seeds else ''}."
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number > 1)}"

"""Writes the report: figures, their numbers, summary.md and a self-contained index.html."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

from etils import epath

from undo_jax.report import blocks, card_tables, figures, plot_figure, provenance, speed, tables
from undo_jax.report.analysis import analyse
from undo_jax.report.attack_results import attack_results
from undo_jax.report.blocks import Section, Table
from undo_jax.report.drawing import render
from undo_jax.report.figure_files import errors_of_figure
from undo_jax.report.logs import read_logs
from undo_jax.report.numbers import Report
from undo_jax.report.page import document, escape, figure, notes
from undo_jax.report.plot import Plot, csv_text
from undo_jax.report.plugin_scores import plugin_score_grid
from undo_jax.report.publishing import Publish, put
from undo_jax.report.search_spaces import space_grid
from undo_jax.report.worst_case_tables import worst_case_grid, worst_case_legend, worst_case_rows
from undo_jax.retain_bound import MIN_RETAIN

ATTACKS = "robustness.csv"  # each attack on each model and seed
WORST = "worst_cases.csv"  # the strongest attack on each model and seed, by what it must retain
SCORES = "scores.csv"  # the numbers of score plug-ins, also of attacks
MANY = 5  # learning rates; of more, as searches draw them, the range is given


@dataclass(frozen=True)
class DrawnFigure:
    """A figure of a report: its caption, its files, and what the page draws for the mouse."""

    caption: str
    files: Mapping[str, bytes] = field(default_factory=dict)  # by "svg", "png" and "csv"
    page_data: Mapping[str, Any] | None = None


class UndrawnError(ValueError):
    """Says which figures of a report cannot be drawn; the report is written without them."""

    def __init__(self, message: str, report: Report):
        super().__init__(message)
        self.report = report


def write(
    workdir: epath.PathLike, name: str, publish: Publish = put, min_retain: float = MIN_RETAIN
) -> Report:
    """Writes WORKDIR/report-NAME/ from the logs of one experiment.

    Args:
        workdir: The folder, or bucket, with the experiment's artifacts.
        name: The experiment's name.
        publish: Makes the report's folder and writes its files.
        min_retain: The share of its retain score that a model must keep under an attack that
            counts; 0: every attack counts.

    Returns:
        The report, with its files by name.

    Raises:
        FileNotFoundError: The workdir has no experiment of this name.
        ValueError: A file is damaged, or no attack has finished.
        UndrawnError: Figures cannot be drawn; all else is written.
    """
    report = analyse(read_logs(workdir, name, min_retain))
    folder, names = epath.Path(workdir) / f"report-{name}", figures.names()
    drawn, undrawn = {}, []
    for figure_name in names:
        try:
            module = figures.find_figure(figure_name)
            with errors_of_figure(module.__file__):
                figure = draw_figure(module, report, figure_name)
        except (ValueError, OSError) as error:
            undrawn.append(f"figure {figure_name}: {error}")
        else:
            drawn |= {figure_name: figure} if figure else {}
    contents = {f"{n}.{kind}": data for n, fig in drawn.items() for kind, data in fig.files.items()}
    contents[ATTACKS] = csv_text(attack_results(report)).encode()
    contents[WORST] = csv_text(worst_case_rows(report)).encode()
    if report.plugin_scores:
        contents[SCORES] = csv_text(report.plugin_scores).encode()
    contents["summary.md"] = markdown(report, drawn).encode()
    contents["index.html"] = page(report, drawn).encode()
    earlier = _figures_in(folder / "summary.md")
    publish(folder, contents)
    for figure_name in {*names, *earlier}:
        for file in (f"{figure_name}.{kind}" for kind in ("png", "svg", "csv")):
            if file not in contents:
                (folder / file).unlink(missing_ok=True)
    report = replace(report, files={file: folder / file for file in contents})
    if undrawn:
        raise UndrawnError("; ".join(undrawn), report)
    return report


def draw_figure(module: ModuleType, report: Report, name: str) -> DrawnFigure | None:
    """Draws a figure from its description, or by its own `draw`; None if it shows nothing."""
    if not hasattr(module, "plot"):
        files = render(partial(module.draw, report), name)
        if not files:
            return None
        csv = csv_text(module.rows(report)) if hasattr(module, "rows") else None
        files |= {"csv": csv.encode()} if csv else {}
        return DrawnFigure(module.caption(report), files, {"csv": csv} if csv else None)
    plot = module.plot(report)
    if plot is None:
        return None
    if not isinstance(plot, Plot):
        raise ValueError(f"plot returns {plot!r}: return a Plot, or None")
    files = render(partial(plot_figure.draw, plot), name) | {"csv": plot.csv.encode()}
    return DrawnFigure(module.caption(report), files, plot.page_data())


def _figures_in(summary: epath.Path) -> list[str]:
    """Returns the figures that an earlier report shows."""
    text = summary.read_bytes().decode(errors="replace") if summary.exists() else ""
    return re.findall(r"^!\[(\w+)\]\(\1\.png\)$", text, re.MULTILINE)


def page(report: Report, drawn: Mapping[str, DrawnFigure]) -> str:
    """Returns index.html, which loads no other files."""
    body = [
        f"<h1>{escape(report.name)}</h1>",
        f'<p class="lead">{escape(_lead(report))}</p>',
        notes(tables.notes(report)),
        *(_figure(name, fig) for name, fig in drawn.items()),
        *map(blocks.html, sections(report)),
        _origin(report),
    ]
    return document(report.name, body)


def _figure(name: str, drawn: DrawnFigure) -> str:
    files = {kind: f"{name}.{kind}" for kind in ("png", "csv") if kind in drawn.files}
    return figure(drawn.files["svg"].decode(), drawn.caption, files, drawn.page_data)


def markdown(report: Report, drawn: Mapping[str, DrawnFigure]) -> str:
    """Returns summary.md."""
    parts = [
        f"# {report.name}",
        "\n".join(f"- {note}" for note in tables.notes(report)),
        *(f"![{name}]({name}.png)\n\n{fig.caption}" for name, fig in drawn.items()),
        *map(blocks.markdown, sections(report)),
        provenance.report_command(report),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def sections(report: Report) -> list[Section]:
    """Returns the tables of a report, with how to read them."""
    speeds = speed.grid(report)
    legend = tables.sentence(tables.legend(report))
    result = [
        _section("Every model", tables.model_grid(report), legend),
        _section("Worst cases", worst_case_grid(report), worst_case_legend(report)),
        _section(speed.title(speeds), speeds, speed.legend(report, speeds)),
        _cards(report),
    ]
    if report.other_metrics:
        result.append(_section("Other scores", tables.score_grid(report)))
    if any(not row.attack for row in report.plugin_scores):
        result.append(_section("Scores", plugin_score_grid(report)))
    title = "Every attack by learning rate"
    attacks = [tables.attack_legend(report), Table(tables.attack_grid(report), title)]
    return [
        *result,
        _section("What was run", provenance.stage_grid(report)),
        Section(title, attacks, folded=True),
    ]


def _section(title: str, grid: tables.Grid, *legend: str) -> Section:
    """Returns a section of one table, with texts below that say how to read it."""
    return Section(title, [Table(grid, title), *legend])


def _cards(report: Report) -> Section:
    """Returns a card for each attacked model, and what the attacks were drawn from."""
    cards = []
    for m in report.attacked:
        card = Table(card_tables.card_grid(report, m), f"Robustness card of {m.name}")
        title = f"{m.name}: {card_tables.headline(report, m)}"
        cards.append(Section(title, [*card_tables.remarks(report, m), card], folded=True))
    title = "What each attack searched"
    searched = Section(title, [Table(space_grid(report), title, wrapped=True)], folded=True)
    return Section("Robustness cards", [card_tables.legend(report), *cards, searched])


def _origin(report: Report) -> str:
    """Returns, as HTML, the commands, versions and settings that made the experiment."""
    items = []
    for o in report.logs.origins:  # a command does not break inside a word
        words = " ".join(f"<span>{escape(word)}</span>" for word in o.command.split(" "))
        date = escape(o.date.replace("T", " ").replace("Z", " UTC"))
        items.append(f"<li>ended {date} on {escape(o.devices)}<code>{words}</code></li>")
    settings = Table(provenance.config_grid(report.logs.artifacts), "Every setting", wrapped=True)
    parts = [
        "<h2>How it was made</h2>",
        f'<ol class="commands">{"".join(items)}</ol>' if items else "",
        f'<p class="legend made">{escape(provenance.versions(report.logs.origins))}</p>',
        f'<p class="legend made">{escape(provenance.report_command(report))}</p>',
        blocks.html(Section("Every setting", [settings], folded=True)),
    ]
    return "\n".join(filter(None, parts))


def _lead(report: Report) -> str:
    """Returns the sentence below the title: how many models, attacks and seeds."""
    last = max(step for m in report.attacked for step in m.curve)
    rates = sorted({rate for m in report.attacked for _, rate in m.finals if rate is not None})
    attack = " without training"
    if rates:
        spread = f"learning rates from {rates[0]:g} to {rates[-1]:g}"
        count = _count(len(rates), "learning rate")
        attack = f" by relearning for {last} steps at {spread if len(rates) > MANY else count}"
    seeds = f"; seed{'s' * (len(report.seeds) > 1)} {', '.join(map(str, report.seeds))}"
    return (
        f"{_count(len(report.attacked), 'model')} attacked{attack}{seeds if report.seeds else ''}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"

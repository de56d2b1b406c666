"""What a figure shows: its panels, the styles of its models, and one tidy table of its numbers.

Each figure is described once, as a `Plot`. `plot_figure` draws it for files, and the scripts of the
page (`web/`) draw it for the mouse.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from undo_jax.report.drawing import dashes, palette
from undo_jax.report.numbers import ModelRow, Report
from undo_jax.report.records import Measure
from undo_jax.report.statistics import Spread


class PlotPoint(NamedTuple):
    """A number that a figure shows: a row of its CSV file."""

    panel: str
    model: str
    seed: int | None
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """A pair of axes with a curve for each model or, with `marks`, one mark for each model."""

    name: str
    x: str  # label
    y: str  # label
    marks: bool = False
    log: bool | None = None  # whether y is logarithmic at first; None: it is always linear
    limits: tuple[float, float] | None = None  # of y
    min_retain: float | None = None  # bound on the attacks that count; None: it shows no attacks


@dataclass(frozen=True)
class Style:
    """How a model is drawn, as a line or as a mark."""

    colour: str
    dashes: tuple[float, ...] = ()  # in line widths; empty: solid
    mark: str = "circle"  # or "diamond", "star"
    hollow: bool = False  # it fell short: its mark is hollow, or its name has a star


@dataclass(frozen=True)
class Plot:
    """A figure; its models are in the order of `styles`."""

    panels: tuple[Panel, ...]
    styles: Mapping[str, Style]
    points: tuple[PlotPoint, ...]
    paths: tuple[tuple[str, ...], ...] = ()  # models whose marks are joined by a faint line
    note: str = ""  # a footnote of the drawing in files

    @property
    def csv(self) -> str:
        """The points as a CSV file; where panels show attacks, with the bound on these."""
        bounds = {panel.name: panel.min_retain for panel in self.panels}
        if not any(bound is not None for bound in bounds.values()):
            return csv_text(self.points)
        rows = [(*point, bounds[point.panel]) for point in self.points]
        return csv_text(rows, (*PlotPoint._fields, "min_retain"))

    def page_data(self) -> dict[str, Any]:
        """Returns what the page's scripts draw, as JSON values; the points are the CSV text."""
        styles = {name: asdict(style) for name, style in self.styles.items()}
        panels = [asdict(panel) for panel in self.panels]
        return {"panels": panels, "styles": styles, "paths": self.paths, "csv": self.csv}

    def by_model(self, panel: Panel) -> dict[str, list[PlotPoint]]:
        """Returns the points of a panel for each model that has any."""
        grouped: dict[str, list[PlotPoint]] = {name: [] for name in self.styles}
        for point in self.points:
            if point.panel == panel.name:
                grouped[point.model].append(point)
        return {name: points for name, points in grouped.items() if points}


def spreads(points: Iterable[Any]) -> dict[float, Spread]:
    """Returns the spread of y over seeds at each x of a model's points, by rising x."""
    values: dict[float, list[float]] = {}
    for point in points:
        values.setdefault(point.x, []).append(point.y)
    return {x: Spread(tuple(values[x])) for x in sorted(values)}


def csv_text(rows: Iterable[Any], header: Sequence[str] = ()) -> str:
    """Returns rows, by default NamedTuples, as a CSV file with a header; empty without rows."""
    out, rows = io.StringIO(), list(rows)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([header or rows[0]._fields, *rows] if rows else [])
    return out.getvalue()


def curve(
    panel: str, model: str, seeds: Sequence[int | None], curves: Mapping[int, Spread]
) -> Iterable[PlotPoint]:
    """Yields the points of a model's curve, seed by seed; non-finite scores are left out."""
    for number, seed in enumerate(seeds):
        for step, spread in curves.items():
            if math.isfinite(spread.values[number]):
                yield PlotPoint(panel, model, seed, step, spread.values[number])


def styles(models: Sequence[ModelRow], report: Report) -> dict[str, Style]:
    """Returns the styles of models, which are the same in all figures of a report."""
    colours = palette(report.models)
    return {
        m.name: Style(
            colours[m.name],
            dashes(m, report.models),
            mark="diamond" if m.alpha is None else "circle",
            hollow=m.fell_short,
        )
        for m in models
    }


def limits(measure: Measure) -> tuple[float, float] | None:
    """Returns the limits of a score's axis: 0 and 1 for an accuracy, None for other scores."""
    return (0.0, 1.0) if measure.higher_is_better and not measure.unit else None


def score_panel(name: str, measure: Measure, y: str, min_retain: float | None = None) -> Panel:
    """Returns a panel of scores by relearning step, whose y axis has the label `y`.

    Args:
        name: Of the panel.
        measure: What the scores measure.
        y: The label of the y axis.
        min_retain: The bound on the attacks that it shows; None: its file of numbers states none.
    """
    ends = limits(measure)
    log = None if ends else False
    return Panel(name, "relearning steps", y, log=log, limits=ends, min_retain=min_retain)

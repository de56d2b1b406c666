"""The numbers behind a figure: its CSV file, and what the page needs to draw it for the mouse."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from undo_jax.report.drawing import linestyle, palette
from undo_jax.report.numbers import Report, Row, Spread
from undo_jax.report.records import Measure


class Point(NamedTuple):
    """A number that a figure shows: a row of its CSV file."""

    panel: str
    model: str
    seed: int | None
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """A pair of axes: a curve over x for each model, or with `marks` one mark for each."""

    name: str
    x: str  # label
    y: str
    marks: bool = False
    log: bool | None = None  # whether y is logarithmic at first; None: it cannot be
    limits: tuple[float, float] | None = None  # of y


@dataclass(frozen=True)
class Style:
    """How a model is drawn: its line, or its mark."""

    colour: str
    dashes: tuple[float, ...] = ()  # in widths of the line; solid without any
    mark: str = "circle"  # or "diamond", "star"
    hollow: bool = False  # it fell short: a hollow mark, or a star after the name of a line


@dataclass(frozen=True)
class Series:
    """All numbers of a figure; models are in the order of `styles`."""

    panels: tuple[Panel, ...]
    styles: Mapping[str, Style]
    points: tuple[Point, ...]
    paths: tuple[tuple[str, ...], ...] = ()  # models whose marks are joined by a faint line

    @property
    def csv(self) -> str:
        return csv_text(self.points)

    def plain(self) -> dict[str, Any]:
        """As JSON for the page; the points are the CSV file's own text."""
        styles = {name: asdict(style) for name, style in self.styles.items()}
        panels = [asdict(panel) for panel in self.panels]
        return {"panels": panels, "styles": styles, "paths": self.paths, "csv": self.csv}


def csv_text(rows: Iterable[Any]) -> str:
    """NamedTuples as a CSV file, with a header; empty without any."""
    out, rows = io.StringIO(), list(rows)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([rows[0]._fields, *rows] if rows else [])
    return out.getvalue()


def curve(
    panel: str, model: str, seeds: Sequence[int | None], spreads: Mapping[int, Spread]
) -> Iterable[Point]:
    """Points of a curve, seed by seed; those without a finite score are left out."""
    for number, seed in enumerate(seeds):
        for step, spread in spreads.items():
            if math.isfinite(spread.values[number]):
                yield Point(panel, model, seed, step, spread.values[number])


def styles(models: Sequence[Row], report: Report) -> dict[str, Style]:
    """Styles of models as the figures draw them."""
    colours = palette(report.models)
    return {
        m.name: Style(colours[m.name], dashes(linestyle(m, report.models)), hollow=m.fell_short)
        for m in models
    }


def dashes(line: Any) -> tuple[float, ...]:
    """Matplotlib's (offset, lengths), or "-"."""
    return () if isinstance(line, str) else tuple(line[1])


def limits(measure: Measure) -> tuple[float, float] | None:
    """Limits of a score's axis: an accuracy goes from 0 to 1."""
    return (0.0, 1.0) if measure.higher_is_better and not measure.unit else None


def logarithmic(measure: Measure) -> bool | None:
    """`Panel.log` of a score's axis: linear at first, and an accuracy's always."""
    return None if limits(measure) else False

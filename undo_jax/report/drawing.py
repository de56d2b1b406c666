"""What figures share: colours, dashes, matplotlib's settings, and rendering to files.

Matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

from undo_jax.report.numbers import ModelRow, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2328", "#6b7280", "#e3e5e8"
WARM, PURPLE, BLACK, GREY = "#d1432f", "#8a4fa3", "#111111", "#8b8f96"
RAMP = ("#57b597", "#2b8fa3", "#24397a")  # low to high alpha
OTHERS = ("#c98a1b", "#a86b4c", "#7a7f35", "#2b6fb3", "#3bb3c4", "#b0577f")
FAMILIES = (  # for several unlearned models, far apart in hue and lightness
    "#d1432f", "#2b6fb3", "#2f9e6e", "#8a4fa3", "#d9921a", "#3bb3c4", "#b0577f", "#7a7f35",
)  # fmt: skip
SHORTFALL = "did not recover the teacher's retain score"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a label may hold dollars
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#9aa0a6",
    "ytick.color": "#9aa0a6",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": True,
}
DASHES = {  # of lines, in line widths
    "oracle": (4, 2.2),
    "base": (1, 1.8),
    "student": (1, 1.2),
    "fresh": (7, 1.8, 1.2, 1.8),
    "noised": (2.6, 1.4),
}


def families(models: Sequence[ModelRow]) -> list[str]:
    """Returns the unlearned ancestors of the models, in their order."""
    return list(dict.fromkeys(m.family for m in models if m.family is not None))


def palette(models: Sequence[ModelRow]) -> dict[str, str]:
    """Returns the colour of each model.

    It depends on the role, and runs from light to dark by rank of alpha. With several unlearned
    ancestors each has a hue, and its students are shades of it.
    """
    ancestors, more = families(models), cycle(OTHERS)
    colours: dict[str, str] = {}
    for m in models:
        if m.role == "base":
            colours[m.name] = GREY
        elif m.role == "oracle":
            colours[m.name] = BLACK
        elif m.family is None:
            colours[m.name] = next(more)
    for i, ancestor in enumerate(ancestors):
        members = [m for m in models if m.family == ancestor and m.name not in colours]
        rest = [m for m in members if m.alpha is None or m.role != "distilled"]
        noised = sorted((m for m in members if m not in rest), key=lambda m: m.alpha or 0.0)
        # A single alpha takes the middle of the ramp.
        last, middle = max(len(noised) - 1, 1), 0.5 * (len(noised) == 1)
        places = {m.name: (rank + middle) / last for rank, m in enumerate(noised)}
        if len(ancestors) == 1:
            colours |= {name: shade(place) for name, place in places.items()}
            fixed = {"unlearned": WARM, "distilled": PURPLE}  # for the first model of each role
            for m in rest:
                colours[m.name] = fixed.pop(m.role, None) or next(more)
        else:
            colour = FAMILIES[i % len(FAMILIES)]
            ramp = _mixed(colour, 1.0, 0.4), colour, _mixed(colour, 0.0, 0.35)
            colours |= {name: shade(place, ramp) for name, place in places.items()}
            colours |= {m.name: colour for m in rest}
    return colours


def dashes(model: ModelRow, models: Sequence[ModelRow]) -> tuple[float, ...]:
    """Returns the dashes of a model's line by its role; empty for a solid line."""
    if model.role != "distilled":
        kind = model.role
    else:
        kind = "fresh" if model.alpha is None else "noised"
    has_own_colour = len(families(models)) <= 1 and kind in ("student", "noised")
    return () if has_own_colour else DASHES.get(kind, ())


def darker(colour: str) -> str:
    """Returns the same hue with enough contrast for text on white."""
    return _mixed(colour, 0.0, 0.2)


def _mixed(colour: str, other: float, share: float) -> str:
    """Returns a colour mixed with a share of white (`other` = 1) or black (0)."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = ((1 - share) * part + share * other for part in to_rgb(colour))
    return to_hex((red, green, blue))


def shade(place: float, ramp: Sequence[str] = RAMP) -> str:
    """Returns the colour at a place in [0, 1] along a ramp."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("undo", ramp)(place))


def starred(report: Report, mark: str) -> str:
    """Returns what the mark of models that fell short means; empty if there are none."""
    short = any(m.fell_short for m in report.attacked)
    return f"{mark}: {SHORTFALL} in at least one seed." if short else ""


def footnote(report: Report, models: Sequence[ModelRow], mark: str) -> str:
    """Returns the footnote of curves: over how many seeds they are, and what the mark means."""
    several = f"mean of {report.seed_counts} seeds, band: min–max"
    parts = [f"{mark} {SHORTFALL}"] if any(m.fell_short for m in models) else []
    return "  ·  ".join([*parts, several if report.several_seeds else "one seed"])


def shortened(name: str) -> str:
    """Returns a name without its middle if it is longer than a line."""
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def text_width(text: str, size: float) -> float:
    """Returns the width of a text in inches; `size` is in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def render(draw: Callable[[], Figure | None], name: str = "figure") -> dict[str, bytes]:
    """Returns {"svg": ..., "png": ...}, byte-identical for equal numbers; empty for None."""
    with style(name):
        fig = draw()
        if fig is None:
            return {}
        if not hasattr(fig, "savefig"):
            raise ValueError(f"draw returns {fig!r}: return a matplotlib figure, or None")
        svg, png = io.BytesIO(), io.BytesIO()
        blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(svg, format="svg", metadata=blank)
        fig.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Applies our style to matplotlib's defaults, regardless of the user's own style."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in STYLE.items():
            matplotlib.rcParams[key] = value
        matplotlib.rcParams["svg.hashsalt"] = salt
        yield

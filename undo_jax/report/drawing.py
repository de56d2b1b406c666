"""What figures share: style, colours, line styles, markers, and rendering to files.

Matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from undo_jax.report.numbers import Report, Row

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
DASHES: Any = {
    "oracle": (0, (4, 2.2)),
    "base": (0, (1, 1.8)),
    "student": (0, (1, 1.2)),
    "fresh": (0, (7, 1.8, 1.2, 1.8)),
    "noised": (0, (2.6, 1.4)),
}


def families(models: Sequence[Row]) -> list[str]:
    """The unlearned ancestors of the models, in their order."""
    return list(dict.fromkeys(m.family for m in models if m.family is not None))


def palette(models: Sequence[Row]) -> dict[str, str]:
    """A colour per model.

    By role, and from light to dark by rank of alpha. With several unlearned ancestors: a hue for
    each ancestor, and its shades by rank of alpha.
    """
    ancestors, others = families(models), iter(_endless(OTHERS))
    colours: dict[str, str] = {}
    for m in models:
        if m.role == "base":
            colours[m.name] = GREY
        elif m.role == "oracle":
            colours[m.name] = BLACK
        elif m.family is None:
            colours[m.name] = next(others)
    for i, ancestor in enumerate(ancestors):
        own = [m for m in models if m.family == ancestor and m.name not in colours]
        rest = [m for m in own if m.alpha is None or m.role != "distilled"]
        noised = sorted((m for m in own if m not in rest), key=lambda m: m.alpha or 0.0)
        # One alpha alone takes the middle of the ramp.
        last, middle = max(len(noised) - 1, 1), 0.5 * (len(noised) == 1)
        places = {m.name: (rank + middle) / last for rank, m in enumerate(noised)}
        if len(ancestors) == 1:
            colours |= {name: shade(place) for name, place in places.items()}
            fixed = {"unlearned": WARM, "distilled": PURPLE}  # for the first model of each role
            for m in rest:
                colours[m.name] = fixed.pop(m.role, None) or next(others)
        else:
            colour = FAMILIES[i % len(FAMILIES)]
            ramp = _mixed(colour, 1.0, 0.4), colour, _mixed(colour, 0.0, 0.35)
            colours |= {name: shade(place, ramp) for name, place in places.items()}
            colours |= {m.name: colour for m in rest}
    return colours


def linestyle(model: Row, models: Sequence[Row]) -> Any:
    """The style of a model's line, by role; some are solid if each model has its own colour."""
    if model.role != "distilled":
        kind = model.role
    else:
        kind = "fresh" if model.alpha is None else "noised"
    alone = len(families(models)) <= 1 and kind in ("student", "noised")
    return "-" if alone else DASHES.get(kind, "-")


def marker(model: Row, colour: str) -> dict[str, Any]:
    """A distilled model's marker: a diamond for a fresh student; hollow if it fell short."""
    fresh = model.alpha is None
    return {
        "marker": "D" if fresh else "o",
        "markersize": 7.5 if fresh else 8.5,
        "markerfacecolor": "white" if model.fell_short else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.8,
    }


def darker(colour: str) -> str:
    """The same hue with enough contrast for text on white."""
    return _mixed(colour, 0.0, 0.2)


def _mixed(colour: str, other: float, share: float) -> str:
    """A colour with a share of white (1.0) or black (0.0)."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = ((1 - share) * part + share * other for part in to_rgb(colour))
    return to_hex((red, green, blue))


def shade(place: float, ramp: Sequence[str] = RAMP) -> str:
    """Colour at place in [0, 1] along a ramp."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("undo", ramp)(place))


def _endless(colours: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colours


def starred(report: Report, mark: str) -> str:
    """What the mark of models that fell short means; empty if there are none."""
    short = any(m.fell_short for m in report.attacked)
    return f"{mark}: {SHORTFALL} in at least one seed." if short else ""


def shortened(name: str) -> str:
    """A name that is not longer than a line."""
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def text_width(text: str, size: float) -> float:
    """Inches that a text takes at a size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def render(draw: Callable[[], Figure | None], name: str = "figure") -> dict[str, bytes]:
    """The figure as {"svg": ..., "png": ...}, byte-identical for the same numbers."""
    with style(name):
        fig = draw()
        if fig is None:
            return {}
        svg, png = io.BytesIO(), io.BytesIO()
        blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(svg, format="svg", metadata=blank)
        fig.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Our style on top of matplotlib's defaults, not of the user's own style."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in STYLE.items():
            matplotlib.rcParams[key] = value
        matplotlib.rcParams["svg.hashsalt"] = salt
        yield

"""Baselines that readers of the paper asked for: other damage, other students, other targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from undo_jax.report import panels
from undo_jax.report.claims import AREAS, Claim
from undo_jax.report.drawing import GREY, PURPLE, RAMP, WARM
from undo_jax.report.panels import Look
from undo_jax.report.studies import Point, Study, difference, lines
from undo_jax.report.tables import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Baselines beside UNDO"
UNDO, FRESH = "UNDO", "Unlearn-and-Distill"
ALONE, COPY, STATES, TOP, FILTERED, HALF = (
    "noise alone", "copy, distilled", "UNDO, with states", "UNDO, top-k logits",
    "UNDO, classifier's filter", "half-size student",
)  # fmt: skip
PRUNING, PARTS = "pruning", ("MLPs", "upper layers")
DASHED, DOTTED, MIXED = (2.6, 1.4), (1, 1.6), (7, 1.8, 1.2, 1.8)
LOOKS = {
    "unlearn-only": Look(WARM),
    UNDO: Look(RAMP[1]),
    FRESH: Look(PURPLE, (0, MIXED)),
    HALF: Look(PURPLE, (0, DOTTED)),
    COPY: Look("#c98a1b", (0, DASHED)),
    ALONE: Look(GREY, (0, DOTTED)),
    STATES: Look("#3bb3c4", (0, DASHED)),
    TOP: Look("#3bb3c4", (0, DOTTED)),
    FILTERED: Look("#2f9e5b", (0, MIXED)),
    "noise in MLPs": Look("#a86b4c"),
    "random, as MLPs": Look("#a86b4c", (0, DOTTED)),
    "noise in upper layers": Look("#7a7f35"),
    "random, as upper layers": Look("#7a7f35", (0, DOTTED)),
    PRUNING: Look("#b0577f", (0, DASHED)),
    "oracle": panels.FILTERING,
}
_DAMAGE = tuple(f"{how} {part}" for part in PARTS for how in ("noise in", "random, as"))
GROUPS = {
    "students": (
        "unlearn-only", ALONE, COPY, FRESH, HALF, STATES, TOP, FILTERED, UNDO, "oracle"
    ),
    "damage": ("unlearn-only", *_DAMAGE, PRUNING, UNDO, "oracle"),
}  # fmt: skip
TRADE, FORGET, PERMUTED = "robustness against FLOPs", "relearning", "relearning permuted answers"


def named(study: Study) -> dict[str, str]:
    """The models by their lines: a model's name may end in the share of damaged weights."""
    return {model.partition(" (")[0]: model for model in study.models}


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Robustness and FLOPs of distilled models; forget scores by relearning step; by group."""
    found: list[Point] = []
    for setting, study in studies.items():
        models = named(study)
        for group, names in GROUPS.items():
            for line in names:
                model = models[line] if line in models else line
                robustness = study.robustness(model)
                for seed, spent in study.compute(model, "flops").items():
                    if line != "oracle" and math.isfinite(spent):
                        at = spent, robustness[seed]
                        found.append(Point(f"{group}: {TRADE}", setting, line, seed, *at))
                for what, of in (
                    (FORGET, study.relearned(model)),
                    (PERMUTED, study.control(model, "permuted")),
                ):
                    found += lines(f"{group}: {what}", setting, line, of)
    return found


def draw(studies: Mapping[str, Study]) -> Figure:
    """A row per setting and group: robustness by FLOPs, relearning, and of permuted answers."""
    shown = points(studies)
    columns = [TRADE, FORGET]
    columns += [PERMUTED] if any(p.panel.endswith(f": {PERMUTED}") for p in shown) else []
    rows = [(setting, group) for setting in studies for group in GROUPS]
    fig, axes = panels.figure(len(rows), len(columns), legend_rows=3)
    for row, (setting, group) in enumerate(rows):
        for ax, what in zip(axes[row], columns, strict=True):
            curves = panels.curves_of(shown, f"{group}: {what}", setting)
            if what == TRADE:
                _trade(
                    ax, [p for p in shown if (p.panel, p.setting) == (f"{group}: {what}", setting)]
                )
                panels.title(ax, f"{sentence(setting)}, {group}: robustness, %")
                ax.set_xlabel("distillation, % of the oracle's FLOPs", fontsize=8.5)
                continue
            forget = studies[setting].forget
            told = forget.axis if what == FORGET else "the same, permuted answers"
            panels.relearning(ax, curves, LOOKS, forget, told)
    panels.legend(fig, LOOKS, columns=5)
    return fig


def _trade(ax: Axes, shown: list[Point]) -> None:
    """A point per model at its means over seeds, with bars to the extremes; a star: filtering.

    It is hollow where the model's line is dotted.
    """
    for line in dict.fromkeys(p.model for p in shown):
        look = LOOKS[line]
        face = "white" if look.style == (0, DOTTED) else look.colour
        shape, own = "o" if look.style == "-" else "D", [p for p in shown if p.model == line]
        panels.mark(ax, own, look.colour, shape, markerfacecolor=face)
    panels.data_filtering(ax)


def caption(studies: Mapping[str, Study]) -> str:
    """What the figure shows, exactly."""
    told = [
        f"{setting}: {', '.join(m for line, m in named(study).items() if m != line)}"
        for setting, study in studies.items()
    ]
    return (
        "Left: robustness against the FLOPs of distillation, with all models that it reads, in % "
        "of the oracle's training; a circle where the model's line is solid, else a diamond, which "
        "is hollow where it is dotted; the star is data filtering. Then: forget score against "
        "relearning steps, at each step of the strongest learning rate of each seed, and of "
        "permuted answers, which nobody knew. Bars and bands go from the lowest to the highest "
        "seed. Noise alone: UNDO's student, not distilled, which has forgotten what is retained, "
        "too. Copy: the teacher itself as student, without noise, for a fixed number of steps. "
        "With states: the error of residual states is added to the loss. Top-k logits: of the "
        "teacher's distribution a student sees the likeliest few tokens and the mass of the rest. "
        "Classifier's filter: "
        "uniform targets on documents that a classifier of the base's states flags; it has seen "
        "a few labelled rows. Damage: all with UNDO's α and distilled as UNDO; random, as X: noise "
        "on as many weights as in X. Shares of the weights that are damaged, of pruning those of "
        f"each matrix: {'; '.join(told)}."
    )


def claims(studies: Mapping[str, Study]) -> list[Claim]:
    """Ours alone: the paper does not ask."""
    found = []
    for setting, study in studies.items():
        models = named(study)
        asked = [
            (
                "a copy without noise distilled for about as long relearns faster than UNDO",
                COPY,
                UNDO,
            ),
            ("noise without distillation relearns faster than UNDO", ALONE, UNDO),
            ("pruning makes a student that relearns faster than UNDO's", PRUNING, UNDO),
            ("states beside logits make UNDO relearn faster", STATES, UNDO),
            ("UNDO that sees the largest logits alone relearns faster", TOP, UNDO),
            ("UNDO without the classifier's filter relearns faster than with it", UNDO, FILTERED),
        ]
        asked += [
            (f"noise in {part} makes a student that relearns more slowly than noise on as many "
             f"weights at random", f"random, as {part}", f"noise in {part}")
            for part in PARTS
        ]  # fmt: skip
        for says, faster, slower in asked:
            found += _faster(setting, study, says, models[faster], models[slower])
        excess = difference(study.areas(HALF), study.areas(FRESH))
        says = f"a half-size student relearns as slowly as {FRESH}, within 0.05"
        found.append(Claim(says, setting, AREAS, excess, bound=0.05, above=False, paper=False))
        for line in (ALONE, STATES, TOP, FILTERED, HALF):
            says, what = f"{line} keeps as much retain as UNDO, within 0.02", "retain score"
            lost = study.kept(line, UNDO)
            found.append(Claim(says, setting, what, lost, bound=-0.02, paper=False))
    return found


def _faster(setting: str, study: Study, says: str, one: str, other: str) -> list[Claim]:
    """A claim of forget scores and, where answers can be permuted, the same of permuted ones."""
    areas = difference(study.areas(one), study.areas(other))
    found = [Claim(says, setting, AREAS, areas, paper=False)]
    permuted = [study.control_areas(model, "permuted") for model in (one, other)]
    if all(permuted):
        says = f"... and so it is of permuted answers ({one} against {other})"
        what = "the same difference of permuted answers"
        found.append(Claim(says, setting, what, difference(*permuted), paper=False))
    return found

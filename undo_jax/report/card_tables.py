"""Robustness cards and search spaces as tables, and in words."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from undo_jax.report.notes import listed
from undo_jax.report.numbers import Attacked, Report, Row, Space
from undo_jax.report.speed import reached
from undo_jax.report.statistics import paired
from undo_jax.report.tables import NONE, Grid, cell, count, filled


class Column(NamedTuple):
    """A quantity of an attack; the oracle's stands beside it under a shorter name."""

    header: str
    short: str
    told: Callable[[Attacked], str]


COLUMNS = (
    Column("worst score", "worst", lambda line: cell(line.worst)),
    Column("retain there", "retain", lambda line: cell(line.retain)),
    Column("steps to a half", "steps", lambda line: reached(line.steps, line.last)),
    Column("examples to a half", "examples", lambda line: reached(line.examples, line.most)),
    Column("area", "area", lambda line: cell(line.area)),
)


def ordered(model: Row) -> list[Attacked]:
    """The attacks on a model from the strongest to the weakest, then its controls."""

    def weakness(line: Attacked) -> tuple[bool, float, int]:
        sign = -1 if line.measure.higher_is_better else 1
        return line.control, sign * line.worst.mean if line.worst.finite else math.inf, line.last

    return sorted(model.attacks, key=weakness)  # stable


def card_grid(report: Report, model: Row) -> Grid:
    """A row for each attack on a model, all beside the oracle's; what no attack has is left out."""
    lines, oracle = ordered(model), _oracle(report, model)
    columns = [("attack", [f"{a.attack} (control)" if a.control else a.attack for a in lines])]
    of = {} if oracle is None else {(a.attack, a.control): a for a in oracle.attacks}
    beside = [of.get((line.attack, line.control)) for line in lines]
    for column in COLUMNS:
        columns.append((column.header, [column.told(line) for line in lines]))
        theirs = [NONE if other is None else column.told(other) for other in beside]
        columns.append((f"{report.oracle}'s {column.short}", theirs))
        if column is COLUMNS[0]:
            pairs = zip(lines, beside, strict=True)
            excess = [_excess(line, other, model, oracle) for line, other in pairs]
            columns.append((f"worst − {report.oracle}'s", excess))
    columns.append(("trials", [count(max(line.trials)) for line in lines]))
    return _of_columns(columns)


def _of_columns(columns: Sequence[tuple[str, list[str]]]) -> Grid:
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return filled(Grid([name for name, _ in columns], rows))


def _oracle(report: Report, model: Row) -> Row | None:
    """The attacked oracle that a model is held against."""
    found = next((m for m in report.attacked if m.role == "oracle"), None)
    return None if found is model else found


def _excess(line: Attacked, other: Attacked | None, model: Row, oracle: Row | None) -> str:
    """Differences from the oracle's worst score, seed by seed."""
    if other is None or oracle is None:
        return NONE
    return cell(paired(model.seeds, line.worst, oracle.seeds, other.worst))


def headline(model: Row) -> str:
    """The strongest attack on a model, and how strong it was."""
    best = next((line for line in ordered(model) if not line.control), None)
    if best is None or not best.worst.finite:
        return "no attack has a score"
    return f"strongest {best.attack}, {cell(best.worst)}"


def told(model: Row) -> Iterator[str]:
    """What a card says in words: its strongest attack, and those that came to nothing."""
    lines = [line for line in ordered(model) if not line.control]
    if lines:
        yield from islice(_strongest(lines[0], model), 1)
    if starved := [line.attack for line in lines if line.starved]:
        yield f"Starved, without an example to train on: {', '.join(starved)}."
    if lost := [_lost(line, model) for line in lines if line.diverged]:
        yield f"Diverged at every learning rate: {', '.join(lost)}."
    vain = [line.attack for line in lines if line.in_vain]
    if vain and model.role not in ("base", "oracle"):
        yield f"Brought nothing back: {', '.join(vain)}."


def _strongest(line: Attacked, model: Row) -> Iterator[str]:
    """The setting of an attack that was strongest, for each seed."""
    for seed, a in zip(model.seeds, line.strongest, strict=True):
        if a is not None:
            of = f" with seed {seed}" if len(model.seeds) > 1 else ""
            how = "" if a.learning_rate is None else f" at learning rate {a.learning_rate:g}"
            yield f"Strongest{of}: {a.data}{how}, step {a.step}."


def _lost(line: Attacked, model: Row) -> str:
    some = line.diverged < len(model.seeds)
    return line.attack + (f" ({line.diverged} of {len(model.seeds)} seeds)" if some else "")


def legend(report: Report) -> str:
    """How to read the cards."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    ranges = ", mean [lowest, highest] over seeds" if report.several_seeds else ""
    text = (
        f"Worst score: {report.forget.axis}, the {worst} at any step, learning rate and setting"
        f"{ranges}; retain there: {report.retain.axis} under that very attack, of equally strong "
        "ones the one that keeps most. Trials: settings times learning rates, for each seed. "
    )
    if any(line.area.finite for m in report.attacked for line in m.attacks):
        text += (
            f"A half: of what the base knows and the {report.oracle} does not, before attacks; "
            "steps and examples are the fewest of any trial, as a median over seeds, and an "
            "example is a different row of training data; area: under the curve of that share, "
            "of the strongest trial at each step. "
        )
    lines = {(a.control, a.attack): a for m in report.attacked for a in m.attacks}
    own: dict[bool, list[str]] = {False: [], True: []}  # scored otherwise; by whether a control
    for (control, name), line in lines.items():
        if line.measure.name != report.forget.name:
            own[control].append(f"{name} by {line.measure.axis}")
    if own[False]:
        text += f"Scored otherwise: {'; '.join(own[False])}. "
    if any(control for control, _ in lines):
        told = f": {'; '.join(own[True])}" if own[True] else ""
        text += f"Controls count in no strongest attack{told}. "
    return text.strip()


# ---- what was searched ----


def space_grid(report: Report) -> Grid:
    """A row for each attack: how many trials, and what was varied; empty columns are left out."""
    spaces = report.spaces
    columns = [
        ("attack", [f"{s.attack} (control)" if s.control else s.attack for s in spaces]),
        ("settings", [count(s.settings) for s in spaces]),
        ("trials", [count(s.trials) for s in spaces]),
        ("learning rates", [_rates(s) for s in spaces]),
        *((name, [_some(s.values[name]) for s in spaces]) for name in _names(spaces)),
    ]
    return _of_columns(columns)


def _names(spaces: Sequence[Space]) -> list[str]:
    return list(dict.fromkeys(name for s in spaces for name in s.values))


def _rates(space: Space) -> str:
    rates = space.learning_rates
    if not rates:
        return NONE
    return ", ".join(f"{rate:g}" for rate in rates) if len(rates) <= 5 else (
        f"{rates[0]:g} to {rates[-1]:g}"
    )  # fmt: skip


def _some(values: Sequence[str]) -> str:
    return listed(values) if values else NONE

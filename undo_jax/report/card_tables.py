"""Robustness cards as tables, with how to read them."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from undo_jax.report.cards import attack_of
from undo_jax.report.numbers import AttackLine, ModelRow, Report
from undo_jax.report.records import UNATTACKED, Evaluation
from undo_jax.report.speed import reached
from undo_jax.report.statistics import paired
from undo_jax.report.tables import NONE, Grid, attack_name, cell, count, filled, sentence
from undo_jax.report.worst_case import none_counts


class CardColumn(NamedTuple):
    """A quantity of an attack; the oracle's is beside it under a shorter name."""

    header: str
    short: str
    text: Callable[[AttackLine], str]


COLUMNS = (
    CardColumn("worst score", "worst", lambda line: cell(line.worst)),
    CardColumn("retain there", "retain", lambda line: cell(line.retain)),
    CardColumn("steps to a half", "steps", lambda line: reached(line.steps, line.last)),
    CardColumn("examples to a half", "examples", lambda line: reached(line.examples, line.most)),
    CardColumn("area", "area", lambda line: cell(line.area)),
)


def ordered(model: ModelRow) -> list[AttackLine]:
    """Returns the attacks on a model from the strongest to the weakest, then its controls."""

    def weakness(line: AttackLine) -> tuple[bool, float, int]:
        sign = -1 if line.measure.higher_is_better else 1
        return line.control, sign * line.worst.mean if line.worst.finite else math.inf, line.last

    return sorted(model.attacks, key=weakness)  # stable


def card_grid(report: Report, model: ModelRow) -> Grid:
    """Returns a row for each attack on a model, beside the oracle's; without empty columns."""
    lines = ordered(model)
    oracle = next((m for m in report.attacked if m.role == "oracle"), None)
    oracle = None if oracle is model else oracle
    oracle_lines = {(a.attack, a.control): a for a in oracle.attacks} if oracle else {}
    beside = [oracle_lines.get((line.attack, line.control)) for line in lines]
    columns = {"attack": [attack_name(line.attack, line.control) for line in lines]}
    for column in COLUMNS:
        columns[column.header] = [column.text(line) for line in lines]
        columns[f"{report.oracle}'s {column.short}"] = [
            column.text(other) if other else NONE for other in beside
        ]
        if column is COLUMNS[0]:
            columns[f"worst − {report.oracle}'s"] = [
                cell(paired(model.seeds, line.worst, oracle.seeds, other.worst))
                if oracle and other
                else NONE
                for line, other in zip(lines, beside, strict=True)
            ]
    columns["trials"] = [count(max(line.trials)) for line in lines]
    return filled(Grid([*columns], [list(row) for row in zip(*columns.values(), strict=True)]))


def headline(report: Report, model: ModelRow) -> str:
    """Returns the strongest attack on a model, and how strong it was: the mean of the table.

    Seeds may differ in their strongest attack; then it says how many have which.
    """
    if not model.worst.finite:
        return "no attack has a score"
    attacks = Counter(
        attack_of(a, report.forget.name) for a in model.strongest if a and a.data != UNATTACKED
    )
    if not attacks:
        some_count = len(model.unqualified) < len(model.worst.finite)
        reason = "no attack that counts brings anything back" if some_count else "no attack counts"
        return f"{reason}, {cell(model.worst)}"
    names = [
        name + (f" ({seeds} seed{'s' * (seeds > 1)})" if len(attacks) > 1 else "")
        for name, seeds in attacks.most_common()
    ]
    return f"strongest {', '.join(names)}, {cell(model.worst)}"


def remarks(report: Report, model: ModelRow) -> Iterator[str]:
    """Yields the strongest attack's setting, and the attacks that recovered nothing."""
    lines = [line for line in ordered(model) if not line.control]
    scored = [(seed, a) for seed, a in zip(model.seeds, model.strongest, strict=True) if a]
    for seed, a in scored[:1]:
        which = f"with seed {seed}" if len(model.seeds) > 1 else ""
        if seed in model.unqualified:
            none = none_counts(report.retain, report.min_retain)
            yield f"{sentence(f'{which} {none}'.strip())}."
        else:
            yield f"{f'Strongest {which}'.strip()}: {_setting(report, a)}."
    if starved := [line.attack for line in lines if line.starved]:
        yield f"Starved, without an example to train on: {', '.join(starved)}."
    if diverged := [_diverged(line, model) for line in lines if line.diverged]:
        yield f"Diverged at every learning rate: {', '.join(diverged)}."
    if useless := [line.attack for line in lines if line.useless]:
        yield f"Without a point that counts: {', '.join(useless)}."
    fruitless = [line.attack for line in lines if line.fruitless]
    if fruitless and model.role not in ("base", "oracle"):
        yield f"Recovered nothing: {', '.join(fruitless)}."


def _setting(report: Report, strongest: Evaluation) -> str:
    """Returns the attack, learning rate and step of a worst case, or that none is stronger."""
    if strongest.data == UNATTACKED:
        return f"none brings anything back, {report.counting}"
    rate = strongest.learning_rate
    at_rate = "" if rate is None else f" at learning rate {rate:g}"
    return f"{strongest.data}{at_rate}, step {strongest.step}"


def _diverged(line: AttackLine, model: ModelRow) -> str:
    partly = line.diverged < len(model.seeds)
    return line.attack + (f" ({line.diverged} of {len(model.seeds)} seeds)" if partly else "")


def legend(report: Report) -> str:
    """Returns how to read the cards."""
    worst = "highest" if report.forget.higher_is_better else "lowest"
    ranges = ", mean [lowest, highest] over seeds" if report.several_seeds else ""
    text = (
        f"Worst score: {report.forget.axis}, the {worst} at any step, learning rate and setting, "
        f"{report.counting}{ranges}; retain there: {report.retain.axis} under that very attack, of "
        "equally strong ones the one that retains most. Trials: settings times learning rates, for "
        "each seed. The file robustness.csv has the numbers of each seed. "
    )
    if any(line.area.finite for m in report.attacked for line in m.attacks):
        text += (
            f"A half: of what the base knows and the {report.oracle} does not, before attacks; "
            "steps and examples are the fewest of any such trial, as a median over seeds, and an "
            "example is a different row of training data; area: under the curve of that share, "
            f"of the strongest trial {report.until} each step. "
        )
    lines = {(a.control, a.attack): a for m in report.attacked for a in m.attacks}
    scored_by: dict[bool, list[str]] = {False: [], True: []}  # by whether they are controls
    for (control, name), line in lines.items():
        if line.measure.name != report.forget.name:
            scored_by[control].append(f"{name} by {line.measure.axis}")
    if scored_by[False]:
        text += f"Scored otherwise: {'; '.join(scored_by[False])}. "
    if any(control for control, _ in lines):
        scores = f": {'; '.join(scored_by[True])}" if scored_by[True] else ""
        text += f"Controls never count as the strongest attack{scores}. "
    return text.strip()

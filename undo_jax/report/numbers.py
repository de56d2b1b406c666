"""The numbers of a report, and functions that compute them from evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from etils import epath

from undo_jax.report.cases import Case
from undo_jax.report.records import Evaluation, Logs, Measure, PluginScore
from undo_jax.report.statistics import MIN_GAP, Spread
from undo_jax.report.worst_case import bound_text, until

Adversary = tuple[str, float | None]  # attack data, learning rate


class WorstCase(NamedTuple):
    """Scores of a model under attack, at one point for each seed."""

    forget: Spread
    retain: Spread


@dataclass(frozen=True)
class AttackLine:
    """One attack on a model, over its attacked seeds: a line of its robustness card.

    Scores are by the attack's own metric; nan for a seed without one, or where undefined.
    """

    attack: str  # a search is one attack
    control: bool
    measure: Measure
    strongest: tuple[Evaluation | None, ...]  # the worst case, at any step; None: no score
    worst: Spread  # its score
    retain: Spread  # and what it leaves
    qualified: tuple[bool, ...]  # of each seed: whether it leaves a useful model at any point
    gain: Spread  # by how much that is more than before the attack
    area: Spread  # under the curve of relearned shares of the strongest setting at each step
    steps: Spread  # the fewest to a share of a half; infinite if it is not reached
    examples: Spread  # likewise
    trials: tuple[int, ...]  # of each seed: settings × learning rates
    last: int  # step
    most: float  # examples; infinite if they are not known
    trains: bool
    diverged: int  # seeds in which each trial ended without a finite score

    @property
    def starved(self) -> bool:
        """Whether it trained without an example."""
        return self.trains and self.most == 0

    @property
    def fruitless(self) -> bool:
        """Whether it recovered nothing, though it trained to its end on something, and counts."""
        tried = self.gain.finite and not self.starved and not self.diverged
        return bool(tried) and any(self.qualified) and self.gain.high < MIN_GAP

    @property
    def useless(self) -> bool:
        """Whether it left no useful model with any seed, though it trained to its end."""
        return not any(self.qualified) and not self.starved and not self.diverged


@dataclass(frozen=True)
class ModelRow:
    """A row of the report. Scores are in their metric's unit, robustness and compute in %."""

    name: str
    role: str
    alpha: float | None
    family: str | None  # its unlearned ancestor's label: models of one family share it
    seeds: tuple[int | None, ...]  # attacked seeds
    finished_seeds: tuple[int | None, ...]
    retain: Spread  # before the attack
    forget: Spread  # before the attack
    other_scores: Mapping[str, Spread]  # before the attack, by the names of the other metrics
    curve: Mapping[int, Spread]  # relearning step -> forget score of the worst case
    retained: Mapping[int, Spread]  # relearning step -> retain score at that point
    unbounded: Mapping[int, Spread]  # the same, whatever attacks leave of the retain score
    unbounded_retained: Mapping[int, Spread]
    worst_cases: Mapping[float, WorstCase]  # over all steps, by the share of retain to keep
    min_retain: float  # the share that counts in the report
    strongest: tuple[Evaluation | None, ...]  # the worst case of each attacked seed; None: no score
    unqualified: tuple[int | None, ...]  # seeds whose model no attack leaves useful
    robustness: Spread
    scaled: tuple[bool, ...]  # per attacked seed: whether both of its references are attacked
    compute_steps: Spread  # of finished seeds
    compute_flops: Spread
    recovered: tuple[bool, ...]  # per distilled seed
    finals: Mapping[Adversary, WorstCase]  # scores at its last step
    losses: Mapping[int, Spread] = field(default_factory=dict)  # of its distillation, by step
    controls: Mapping[str, Mapping[int, Spread]] = field(default_factory=dict)  # by their names
    area: Spread = Spread()  # under the curve of relearned shares, see `Case.shares`
    half: Spread = Spread()  # steps to a share of a half; infinite if it is not reached
    attacks: tuple[AttackLine, ...] = ()  # its robustness card

    @property
    def worst(self) -> Spread:
        """P: the forget score of the worst case over all steps."""
        return self.worst_cases[self.min_retain].forget

    @property
    def fell_short(self) -> bool:
        """Whether any seed ended its distillation below the recovery bar."""
        return not all(self.recovered)

    @property
    def is_reference(self) -> bool:
        """Whether it defines the scale of robustness: 0 or 100 % by definition."""
        return self.role in ("unlearned", "oracle")


@dataclass(frozen=True)
class Report:
    """The numbers of a report and, once written, its files by name."""

    name: str
    retain: Measure
    forget: Measure
    other_metrics: tuple[Measure, ...]
    models: tuple[ModelRow, ...]
    shown_steps: tuple[int, ...]  # relearning steps the tables quote
    unfinished: tuple[str, ...]
    notes: tuple[str, ...]
    no_robustness: tuple[str, ...]  # of the notes those that say why it is missing
    logs: Logs
    cases: tuple[Case, ...] = field(compare=False)  # of which the numbers above are made
    paired: bool  # whether each model is compared with the oracle of its own seed
    files: Mapping[str, epath.Path] = field(default_factory=dict)
    plugin_scores: tuple[PluginScore, ...] = ()  # of undo_jax/scores

    @property
    def min_retain(self) -> float:
        """The share of the retain score that an attack must leave to count; 0: no bound."""
        return self.logs.min_retain

    @property
    def counting(self) -> str:
        """Which attacks count, to go on after "the strongest attack"."""
        return bound_text(self.retain, self.min_retain)

    @property
    def until(self) -> str:
        """Of which steps attacks count in curves, to go on before "each step"."""
        return until(self.min_retain)

    @property
    def attacked(self) -> tuple[ModelRow, ...]:
        return tuple(m for m in self.models if m.curve)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({s for m in self.attacked for s in m.seeds if s is not None}))

    @property
    def several_seeds(self) -> bool:
        """Whether any row is over more than one seed."""
        return any(len(m.seeds) > 1 for m in self.attacked)

    @property
    def seed_counts(self) -> str:
        """The number of seeds per row, e.g. 5, or 1–5."""
        counts = sorted({len(m.seeds) for m in self.attacked})
        return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))

    @property
    def unlearned(self) -> str | None:
        """The label of the unlearned model, where there is one."""
        return sole(m.name for m in self.models if m.role == "unlearned")

    @property
    def oracle(self) -> str:
        """The label of the oracle, where there is one."""
        return sole(m.name for m in self.models if m.role == "oracle") or "oracle"


def sole(labels: Iterable[str]) -> str | None:
    """Returns the label, if there is only one."""
    distinct = set(labels)
    return distinct.pop() if len(distinct) == 1 else None


def pick_steps(steps: Iterable[int]) -> tuple[int, ...]:
    """Returns the first evaluated steps at or after 1/3 and 1/2 of the way, and the last."""
    grid = sorted(steps)
    picked = (next(s for s in grid if s >= way * grid[-1]) for way in (1 / 3, 1 / 2, 1))
    return tuple(sorted(set(picked)))


def worst_case_of(points: Iterable[Evaluation | None]) -> WorstCase:
    """Returns the scores of one point for each seed; nan where there is none."""
    scores = [(math.nan, math.nan) if a is None else (a.forget, a.retain) for a in points]
    return WorstCase(*(Spread(tuple(pair[i] for pair in scores)) for i in range(2)))


def finals(attacks: Iterable[Evaluation]) -> dict[Adversary, Evaluation]:
    """Returns the evaluation of each adversary at its last step."""
    return {(a.data, a.learning_rate): a for a in sorted(attacks, key=lambda a: a.step)}


def adversary_order(adversary: Adversary) -> tuple[str, float]:
    """Sort key: by data, then by learning rate; an attack that does not train comes first."""
    data, rate = adversary
    return data, -math.inf if rate is None else rate

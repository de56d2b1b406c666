"""Cases: each model of an experiment with one seed, its attacks, and what it is compared with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undo_jax.report.records import Entry, Evaluation, Logged, Logs, Measure
from undo_jax.report.statistics import robustness, shares
from undo_jax.report.worst_case import by_step, strongest


@dataclass(frozen=True)
class Case:
    """A model with one seed."""

    entry: Entry
    attacked_by: tuple[Logged, ...]  # finished attacks on it, without controls
    controlled_by: tuple[Logged, ...]
    strongest: Mapping[int, Evaluation]  # by relearning step
    shares: Mapping[int, float]  # relearned at each step: 0 as the oracle before, 1 as the base
    artifact: Logged | None  # None: unfinished
    oracle: Logged | None
    base: Logged | None
    family: str | None  # label of its unlearned ancestor
    scaled: bool  # whether attacks on both of its references have finished
    robustness: float

    @property
    def attacked(self) -> bool:
        """Whether an attack on it has finished."""
        return bool(self.attacked_by)

    @property
    def attacks(self) -> tuple[Evaluation, ...]:
        return tuple(a for artifact in self.attacked_by for a in artifact.attacks)

    @property
    def controls(self) -> tuple[Evaluation, ...]:
        return tuple(a for artifact in self.controlled_by for a in artifact.attacks)

    def control(self, name: str, logs: Logs) -> dict[int, Evaluation]:
        """Returns a control's evaluation at each step: the strongest rate by its own metric."""
        evaluations = [a for a in self.controls if a.data == name]
        if not evaluations:
            return {}
        return by_step(evaluations, logs.measures[evaluations[0].metric], logs.retain)

    def compute(self, unit: str) -> float:
        """Returns distillation in % of the oracle's training, by "steps" or "flops"."""
        if self.artifact is None or self.oracle is None:
            return math.nan
        if not (self.entry.role == "distilled" or self.artifact is self.oracle):
            return math.nan
        spent, full = self.artifact.summary[unit], self.oracle.summary[unit]
        return 100 * spent / full if full else math.nan


def score_of(artifact: Logged | None, measure: Measure) -> float:
    """Returns a model's score before attacks; nan where it has none."""
    return math.nan if artifact is None else artifact.summary["eval"].get(measure.name, math.nan)


def cases_of(logs: Logs) -> list[Case]:
    """Returns every model and seed with its attacks, its references and its robustness."""
    finished = {a.folder: a for a in logs.artifacts}
    labels = logs.owners | {entry.artifact: entry.model for entry in logs.entries}
    # Attacks and controls by the attacked artifact, which several entries may list.
    attacks: dict[str | None, dict[str, Logged]] = {}
    controls: dict[str, dict[str, Logged]] = {}
    for entry in logs.entries:
        for folders, grouped in ((entry.attacks, attacks), (entry.controls, controls)):
            grouped.setdefault(entry.artifact, {}).update(
                {folder: finished[folder] for folder in folders if folder in finished}
            )
    worst = {
        folder: strongest([a for m in artifacts.values() for a in m.attacks], logs.forget)
        for folder, artifacts in attacks.items()
        if artifacts
    }
    bases, cases = _bases(logs, finished), []
    for entry in logs.entries:
        attacked_by = tuple(attacks[entry.artifact].values())
        curve = by_step((a for m in attacked_by for a in m.attacks), logs.forget, logs.retain)
        oracle = finished.get(entry.oracle or "")
        base = bases.get(entry.seed, next(iter(bases.values())) if len(bases) == 1 else None)
        values = [
            robustness(worst.get(entry.artifact, math.nan), worst[u], worst[o], logs.forget)
            for u, o in _references(entry, logs.entries)
            if u in worst and o in worst
        ]
        cases.append(
            Case(
                entry=entry,
                attacked_by=attacked_by,
                controlled_by=tuple(controls[entry.artifact].values()),
                strongest=curve,
                shares=shares(
                    {step: a.forget for step, a in curve.items()},
                    score_of(oracle, logs.forget),
                    score_of(base, logs.forget),
                ),
                artifact=finished.get(entry.artifact),
                oracle=oracle,
                base=base,
                family=labels.get(entry.unlearned or ""),
                scaled=bool(values),
                robustness=next((v for v in values if math.isfinite(v)), math.nan),
            )
        )
    return cases


def _bases(logs: Logs, finished: Mapping[str, Logged]) -> dict[int | None, Logged]:
    """Returns the base before attacks, by seed.

    Of several models with that role it is the one that was unlearned; empty if these are several.
    """
    bases = [e for e in logs.entries if e.role == "base" and e.artifact in finished]
    unlearned = [e for e in logs.entries if e.role == "unlearned" and e.artifact in finished]
    ancestors = {f for e in unlearned for f in finished[e.artifact].upstream}
    bases = [e for e in bases if e.artifact.rpartition("-")[2] in ancestors] or bases
    if len({e.model for e in bases}) > 1:
        return {}
    return {e.seed: finished[e.artifact] for e in bases}


def _references(entry: Entry, entries: Sequence[Entry]) -> list[tuple[str | None, str | None]]:
    """Returns the unlearned model and the oracle that a model is compared with.

    For the oracle itself: with every unlearned model that is compared with it.
    """
    if entry.role != "oracle":
        return [(entry.unlearned, entry.oracle)]
    unlearned = dict.fromkeys(e.unlearned for e in entries if e.oracle == entry.artifact)
    return [(folder, entry.artifact) for folder in unlearned if folder is not None]

"""Cases: each model of an experiment with one seed, its attacks, and what it is compared with."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from undo_jax.report.records import UNATTACKED, Entry, Evaluation, Logged, Logs, Measure
from undo_jax.report.statistics import robustness, shares
from undo_jax.report.worst_case import shown_bounds, within, worst, worst_by_step


@dataclass(frozen=True)
class Case:
    """A model with one seed."""

    entry: Entry
    attacked_by: tuple[Logged, ...]  # finished attacks on it, without controls
    controlled_by: tuple[Logged, ...]
    strongest: Mapping[int, Evaluation]  # worst case by relearning step
    shares: Mapping[int, float]  # relearned at each step: 0 as the oracle before, 1 as the base
    artifact: Logged | None  # None: unfinished
    oracle: Logged | None
    base: Logged | None
    family: str | None  # label of its unlearned ancestor
    scaled: bool  # whether attacks on both of its references have finished
    robustness: float
    logs: Logs = field(repr=False)

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

    def worst_by_step(
        self, attacks: Sequence[Evaluation], measure: Measure, min_retain: float | None = None
    ) -> dict[int, Evaluation]:
        """Returns the worst case of some of its attacks at each step, see `worst_case`.

        Args:
            attacks: Evaluations of attacks on it.
            measure: What their forget scores measure.
            min_retain: The share of the retain score to keep; None: that of the report.
        """
        return _worst_by_step(self.artifact, attacks, measure, self.logs, min_retain)

    @functools.cached_property
    def curves(self) -> dict[float, dict[int, Evaluation]]:
        """The worst case of all attacks at each step, by each bound that a report shows."""
        bounds = shown_bounds(self.logs.min_retain)
        return {b: self.worst_by_step(self.attacks, self.logs.forget, b) for b in bounds}

    def worst(self, min_retain: float) -> Evaluation | None:
        """Returns the worst case of all attacks at any step; None if there is none.

        Args:
            min_retain: One of the bounds that a report shows.
        """
        return worst(self.curves[min_retain], self.logs.forget, self.logs.retain)

    def within(
        self, attacks: Sequence[Evaluation], min_retain: float | None = None
    ) -> list[Evaluation]:
        """Returns the evaluations that keep enough of the retain score to count.

        Args:
            attacks: Evaluations of attacks on it.
            min_retain: The share of the retain score to keep; None: that of the report.
        """
        before = _before(self.artifact, attacks, self.logs.forget, self.logs)
        bound = self.logs.min_retain if min_retain is None else min_retain
        return within(attacks, before, self.logs.retain, bound)

    def qualifies(self, attacks: Sequence[Evaluation], min_retain: float | None = None) -> bool:
        """Says whether any of these evaluations counts, besides those before the first step.

        Args:
            attacks: Evaluations of attacks on it.
            min_retain: The share of the retain score to keep; None: that of the report.
        """
        counting = self.within(attacks, min_retain)
        return any(a.step > 0 or a.learning_rate is None for a in counting)

    @property
    def unqualified(self) -> bool:
        """Whether attacks on it have scores, and none of them counts."""
        return bool(self.strongest) and not self.qualifies(self.attacks)

    def control(self, name: str) -> dict[int, Evaluation]:
        """Returns the worst case of a control at each step, by its own metric."""
        evaluations = [a for a in self.controls if a.data == name]
        if not evaluations:
            return {}
        return self.worst_by_step(evaluations, self.logs.measures[evaluations[0].metric])

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


def _before(
    model: Logged | None, attacks: Sequence[Evaluation], measure: Measure, logs: Logs
) -> Evaluation:
    """Returns the evaluation of a model before attacks.

    A student, which has no scores of its own, has those of a training at step 0.
    """
    scores = score_of(model, measure), score_of(model, logs.retain)
    if not all(map(math.isfinite, scores)):
        starts = (a for a in attacks if a.step == 0 and a.learning_rate is not None)
        scores = next(((a.forget, a.retain) for a in starts), scores)
    return Evaluation(UNATTACKED, None, 0, *scores, metric=measure.name)


def _worst_by_step(
    model: Logged | None,
    attacks: Sequence[Evaluation],
    measure: Measure,
    logs: Logs,
    min_retain: float | None = None,
) -> dict[int, Evaluation]:
    """Returns the worst case of attacks on a model at each step, see `worst_case`."""
    before = _before(model, attacks, measure, logs)
    bound = logs.min_retain if min_retain is None else min_retain
    return worst_by_step(attacks, before, measure, logs.retain, bound)


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
    curves = {
        folder: _worst_by_step(
            finished.get(folder or ""),
            [a for m in artifacts.values() for a in m.attacks],
            logs.forget,
            logs,
        )
        for folder, artifacts in attacks.items()
        if artifacts
    }
    worst_scores = {
        folder: getattr(worst(curve, logs.forget, logs.retain), "forget", math.nan)
        for folder, curve in curves.items()
    }
    bases, cases = _bases(logs, finished), []
    for entry in logs.entries:
        attacked_by = tuple(attacks[entry.artifact].values())
        curve = curves.get(entry.artifact, {})
        oracle = finished.get(entry.oracle or "")
        base = bases.get(entry.seed, next(iter(bases.values())) if len(bases) == 1 else None)
        values = [
            robustness(
                worst_scores.get(entry.artifact, math.nan),
                worst_scores[u],
                worst_scores[o],
                logs.forget,
            )
            for u, o in _references(entry, logs.entries)
            if u in worst_scores and o in worst_scores
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
                logs=logs,
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

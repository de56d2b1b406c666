"""Robustness cards: of each model, what every attack recovered, and at what cost."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from undo_jax.report.cases import Case, score_of
from undo_jax.report.numbers import (
    MIN_GAP,
    AttackLine,
    ModelRow,
    SearchSpace,
    Spread,
    by_step,
    finals,
    strength,
)
from undo_jax.report.records import Evaluation, Logged, Logs, Measure
from undo_jax.report.search_spaces import count_examples, search_space
from undo_jax.report.statistics import area, shares, steps_to

SEARCHED = re.compile(r"(.+?)-\d+-\d+(?:-|$)")  # NAME-SEED-NUMBER-...: an attack of a search
HALF = 0.5  # a share: of what the base knows beyond the oracle


def attack_of(evaluation: Evaluation, headline: str) -> str:
    """Returns the attack as a card names it: all attacks of one search are one line.

    Its name also has the metric, where that is not the headline's forget metric.
    """
    searched = SEARCHED.match(evaluation.data)
    if not searched:
        return evaluation.data
    return searched[1] if evaluation.metric == headline else f"{searched[1]}-{evaluation.metric}"


class ScoredTrial(NamedTuple):
    """An evaluation, and how many examples the attacker had by then; nan where not recorded."""

    evaluation: Evaluation
    examples: float


class SeedResult(NamedTuple):
    """One attack on a model with one seed; nan where undefined, infinite where never reached."""

    worst: Evaluation | None = None  # None: no finite score
    gain: float = math.nan
    area: float = math.nan
    steps: float = math.nan
    examples: float = math.nan


def card(cases: Sequence[Case], logs: Logs) -> tuple[AttackLine, ...]:
    """Returns a line for each attack on a model, over its seeds; controls come last."""
    lines = []
    for control in (False, True):
        by_seed = [
            _trials(case.controlled_by if control else case.attacked_by, logs.forget.name)
            for case in cases
        ]
        for name in dict.fromkeys(name for trials in by_seed for name in trials):
            trials = [trials.get(name, []) for trials in by_seed]
            lines.append(_line(name, control, trials, cases, logs))
    return tuple(lines)


def _trials(artifacts: Sequence[Logged], headline: str) -> dict[str, list[ScoredTrial]]:
    """Returns all evaluations by the attack's name."""
    trials: dict[str, list[ScoredTrial]] = {}
    for artifact in artifacts:
        for a in artifact.attacks:
            trial = ScoredTrial(a, count_examples(artifact.settings.get("attack"), a.step))
            trials.setdefault(attack_of(a, headline), []).append(trial)
    return trials


def _line(
    name: str,
    control: bool,
    by_seed: Sequence[Sequence[ScoredTrial]],
    cases: Sequence[Case],
    logs: Logs,
) -> AttackLine:
    """Returns one attack on a model, over its seeds."""
    trials = [trial for seed_trials in by_seed for trial in seed_trials]
    measure = logs.measures[trials[0].evaluation.metric]
    results = [
        _seed_result(case, seed_trials, measure, logs.retain)
        for case, seed_trials in zip(cases, by_seed, strict=True)
    ]
    worst = [result.worst for result in results]
    settings = ({(a.data, a.learning_rate) for a, _ in seed_trials} for seed_trials in by_seed)
    return AttackLine(
        attack=name,
        control=control,
        measure=measure,
        strongest=tuple(worst),
        worst=Spread(tuple(math.nan if a is None else a.forget for a in worst)),
        retain=Spread(tuple(math.nan if a is None else a.retain for a in worst)),
        gain=Spread(tuple(result.gain for result in results)),
        area=Spread(tuple(result.area for result in results)),
        steps=Spread(tuple(result.steps for result in results)),
        examples=Spread(tuple(result.examples for result in results)),
        trials=tuple(map(len, settings)),
        last=max(a.step for a, _ in trials),
        most=max((n for _, n in trials if not math.isnan(n)), default=math.inf),
        trains=any(a.learning_rate is not None for a, _ in trials),
        diverged=sum(map(_diverged, by_seed)),
    )


def _diverged(trials: Sequence[ScoredTrial]) -> bool:
    """Returns whether a seed was attacked, and each trial ended without a finite score."""
    scores = finals(trial.evaluation for trial in trials).values()
    return bool(scores) and not any(map(math.isfinite, scores))


def _seed_result(
    case: Case, trials: Sequence[ScoredTrial], measure: Measure, retain: Measure
) -> SeedResult:
    """Returns one attack on one seed, by its strongest setting and rate at each step."""
    curve = by_step((trial.evaluation for trial in trials), measure, retain)
    if not curve:
        return SeedResult()
    sign = 1 if measure.higher_is_better else -1
    worst = max(curve.values(), key=strength(measure, retain))
    gain = sign * (worst.forget - score_of(case.artifact, measure))
    # Shares are undefined if nothing trains, or the base knows no more than the oracle.
    never, full = score_of(case.oracle, measure), score_of(case.base, measure)
    trains = any(trial.evaluation.learning_rate is not None for trial in trials)
    if not (trains and sign * (full - never) >= MIN_GAP):
        return SeedResult(worst, gain)
    relearned = shares({step: a.forget for step, a in curve.items()}, never, full)
    trial_shares = shares({i: t.evaluation.forget for i, t in enumerate(trials)}, never, full)
    examples = math.nan
    if not any(math.isnan(trial.examples) for trial in trials):
        enough = (t.examples for i, t in enumerate(trials) if trial_shares[i] >= HALF)
        examples = min(enough, default=math.inf)
    return SeedResult(worst, gain, area(relearned), steps_to(relearned, HALF), examples)


def search_spaces(
    cases: Sequence[Case], models: Sequence[ModelRow], headline: str
) -> tuple[SearchSpace, ...]:
    """Returns the space of each attack, in the order of the cards; controls come last."""
    lines = [line for m in models for line in m.attacks]
    trials: dict[tuple[bool, str], int] = {}
    for line in lines:
        key = line.control, line.attack
        trials[key] = max(trials.get(key, 0), *line.trials)
    configs: dict[tuple[bool, str], dict[str, object]] = {key: {} for key in trials}
    for case in cases:
        for control, artifacts in ((False, case.attacked_by), (True, case.controlled_by)):
            for artifact in artifacts:
                for a in artifact.attacks:
                    by_name = configs[control, attack_of(a, headline)]
                    by_name[a.data] = artifact.settings.get("attack")
    return tuple(
        search_space(name, control, trials[control, name], [*configs[control, name].values()])
        for control, name in sorted(trials, key=lambda key: key[0])  # stable
    )

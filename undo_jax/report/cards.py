"""Robustness cards: of each model, what every attack recovered, and at what cost."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from undo_jax.report.cases import Case, score_of
from undo_jax.report.numbers import AttackLine, finals, worst_case_of
from undo_jax.report.records import Evaluation, Logs, Measure
from undo_jax.report.statistics import MIN_GAP, Spread, area, shares, steps_to
from undo_jax.report.worst_case import worst

SEARCHED = re.compile(r"(.+?)-\d+-\d+(?:-|$)")  # NAME-SEED-NUMBER-...: an attack of a search
HALF = 0.5  # a share: of what the base knows beyond the oracle

AttackConfig = Any  # an attack's settings as JSON; a file may hold anything here
ScoredTrial = tuple[Evaluation, float]  # and how many examples it had read; nan if not recorded


def attack_of(evaluation: Evaluation, headline: str) -> str:
    """Returns the attack as a card names it: all attacks of one search are one line.

    Its name also has the metric, where that is not the headline's forget metric.
    """
    searched = SEARCHED.match(evaluation.data)
    if not searched:
        return evaluation.data
    return searched[1] if evaluation.metric == headline else f"{searched[1]}-{evaluation.metric}"


def get_path(config: AttackConfig, *keys: str) -> Any:
    """Returns a setting by its path; None where it is not stated."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _get_int(config: AttackConfig, *keys: str) -> float:
    """Returns a whole number by its path; nan where none is stated."""
    value = get_path(config, *keys)
    return value if type(value) is int else math.nan


def count_examples(config: AttackConfig, step: int) -> float:
    """Returns how many different rows a training has read by a step; nan if it is not stated.

    An opening, `[stream, share of the steps]`, reads another stream before the attack's own; a mix,
    `[stream, share of each batch]`, reads another one beside it.
    """
    size, steps = (_get_int(config, "training", name) for name in ("batch_size", "steps"))
    opening, mix = (share_of(config, name) for name in ("opening", "mix"))
    opened, mixed = opening * steps if opening else 0.0, mix * size
    if not all(map(math.isfinite, (size, opened, mixed))):
        return math.nan
    before = min(step, round(opened))
    beside = round(mixed) * (step - before)
    read = size * (step - before) - beside
    if get_path(config, "rows") is not None:
        read = min(read, _get_int(config, "rows"))
    return size * before + beside + read


def share_of(config: AttackConfig, name: str) -> float:
    """Returns the share of another stream, `[stream, share]`: 0 without one, nan if damaged."""
    if (stated := get_path(config, name)) is None:
        return 0.0
    share: Any = stated[1] if isinstance(stated, list) and len(stated) == 2 else None
    return share if type(share) in (int, float) else math.nan


class SeedResult(NamedTuple):
    """One attack on a model with one seed; nan where undefined, infinite where never reached."""

    worst: Evaluation | None = None  # None: no finite score
    qualified: bool = False  # whether any point of it counts
    gain: float = math.nan
    area: float = math.nan
    steps: float = math.nan
    examples: float = math.nan


def card(cases: Sequence[Case], logs: Logs) -> tuple[AttackLine, ...]:
    """Returns a line for each attack on a model, over its seeds; controls come last."""
    trials: dict[tuple[str, bool], list[list[ScoredTrial]]] = {}  # by seed
    for control in (False, True):
        for i, case in enumerate(cases):
            for artifact in case.controlled_by if control else case.attacked_by:
                for a in artifact.attacks:
                    by_seed = trials.setdefault(
                        (attack_of(a, logs.forget.name), control), [[] for _ in cases]
                    )
                    examples = count_examples(artifact.settings.get("attack"), a.step)
                    by_seed[i].append((a, examples))
    return tuple(_line(*key, by_seed, cases, logs) for key, by_seed in trials.items())


def _line(
    name: str,
    control: bool,
    by_seed: Sequence[Sequence[ScoredTrial]],
    cases: Sequence[Case],
    logs: Logs,
) -> AttackLine:
    """Returns one attack on a model, over its seeds."""
    trials = [trial for seed_trials in by_seed for trial in seed_trials]
    measure = logs.measures[trials[0][0].metric]
    strongest, *quantities = zip(
        *(
            _seed_result(case, scored, measure, logs)
            for case, scored in zip(cases, by_seed, strict=True)
        ),
        strict=True,
    )
    qualified, *quantities = quantities
    gain, areas, steps, examples = map(Spread, quantities)
    worst_case = worst_case_of(strongest)
    return AttackLine(
        attack=name,
        control=control,
        measure=measure,
        strongest=strongest,
        worst=worst_case.forget,
        retain=worst_case.retain,
        qualified=qualified,
        gain=gain,
        area=areas,
        steps=steps,
        examples=examples,
        trials=tuple(
            len({(a.data, a.learning_rate) for a, _ in seed_trials}) for seed_trials in by_seed
        ),
        last=max(a.step for a, _ in trials),
        most=max((n for _, n in trials if not math.isnan(n)), default=math.inf),
        trains=any(a.learning_rate is not None for a, _ in trials),
        diverged=sum(map(_diverged, by_seed)),
    )


def _diverged(trials: Sequence[ScoredTrial]) -> bool:
    """Returns whether a seed was attacked, and each trial ended without a finite score."""
    ends = finals(a for a, _ in trials).values()
    return bool(ends) and not any(math.isfinite(a.forget) for a in ends)


def _seed_result(
    case: Case, trials: Sequence[ScoredTrial], measure: Measure, logs: Logs
) -> SeedResult:
    """Returns one attack on one seed, by its strongest setting and rate at each step."""
    attacks = [a for a, _ in trials]
    curve = case.worst_by_step(attacks, measure)
    strongest = worst(curve, measure, logs.retain)
    if strongest is None:
        return SeedResult()
    qualified = case.qualifies(attacks)
    sign = 1 if measure.higher_is_better else -1
    gain = sign * (strongest.forget - score_of(case.artifact, measure))
    # Shares are undefined if nothing trains, or the base knows no more than the oracle.
    never, full = score_of(case.oracle, measure), score_of(case.base, measure)
    trains = any(a.learning_rate is not None for a, _ in trials)
    if not (trains and sign * (full - never) >= MIN_GAP):
        return SeedResult(strongest, qualified, gain)
    relearned = shares({step: a.forget for step, a in curve.items()}, never, full)
    examples = math.nan
    if not any(math.isnan(number) for _, number in trials):
        counted = set(case.within(attacks))
        counting = [(a.forget, number) for a, number in trials if a in counted]
        trial_shares = shares({i: score for i, (score, _) in enumerate(counting)}, never, full)
        enough = (number for i, (_, number) in enumerate(counting) if trial_shares[i] >= HALF)
        examples = min(enough, default=math.inf)
    steps = steps_to(relearned, HALF)
    return SeedResult(strongest, qualified, gain, area(relearned), steps, examples)

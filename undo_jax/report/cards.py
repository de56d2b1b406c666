"""Robustness cards: of each model, what every attack brought back, and at what price."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from undo_jax.report.notes import Case
from undo_jax.report.numbers import MIN_GAP, Attacked, Row, Space, Spread, by_step, finals, strength
from undo_jax.report.records import Evaluation, Logged, Measure
from undo_jax.report.search_spaces import examples, space
from undo_jax.report.statistics import area, shares, steps_to

DRAWN = re.compile(r"(.+?)-\d+-\d+(?:-|$)")  # NAME-SEED-NUMBER-...: what a search drew
HALF = 0.5  # a share: of what the base knew beyond the oracle


def attack_of(one: Evaluation, headline: str) -> str:
    """The attack as a card names it: all that one search drew, scored alike, is one attack.

    Its name also has the metric, where that is not the headline's of what is forgotten.
    """
    drawn = DRAWN.match(one.data)
    if not drawn:
        return one.data
    return drawn[1] if one.metric == headline else f"{drawn[1]}-{one.metric}"


class Trial(NamedTuple):
    """An evaluation, and how many examples the attacker had by then; nan where not recorded."""

    evaluation: Evaluation
    examples: float


class Outcome(NamedTuple):
    """One attack on a model with one seed; nan where undefined, infinite where never reached."""

    worst: Evaluation | None = None  # None: no finite score
    gain: float = math.nan
    area: float = math.nan
    steps: float = math.nan
    examples: float = math.nan


def card(
    cases: Sequence[Case], measures: Mapping[str, Measure], retain: Measure, headline: str
) -> tuple[Attacked, ...]:
    """A line for each attack on a model, over its seeds; controls come last."""
    attacks = [_trials(case.attacked_by, headline) for case in cases]
    controls = [_trials(case.controlled_by, headline) for case in cases]
    return tuple(
        _line(name, some is controls, [of.get(name, []) for of in some], cases, measures, retain)
        for some in (attacks, controls)
        for name in dict.fromkeys(name for trials in some for name in trials)
    )


def spaces(cases: Sequence[Case], models: Sequence[Row], headline: str) -> tuple[Space, ...]:
    """Each attack's, in the order of the cards; an attack and a control may have one name."""
    lines = {(line.control, line.attack): line for m in models for line in m.attacks}
    trials = dict.fromkeys(lines, 0)
    for line in (line for m in models for line in m.attacks):
        one = line.control, line.attack
        trials[one] = max(trials[one], *line.trials)
    found: dict[tuple[bool, str], dict[str, object]] = {one: {} for one in lines}  # by full name
    for case in cases:
        for control, some in ((False, case.attacked_by), (True, case.controlled_by)):
            for made in some:
                for a in {a.data: a for a in made.attacks}.values():
                    said = made.settings.get("attack")
                    found[control, attack_of(a, headline)][a.data] = said
    ordered = sorted(lines, key=lambda one: one[0])  # stable
    return tuple(
        space(name, control, trials[control, name], [*found[control, name].values()])
        for control, name in ordered
    )


def _trials(made: Sequence[Logged], headline: str) -> dict[str, list[Trial]]:
    """All evaluations by the attack's name."""
    found: dict[str, list[Trial]] = {}
    for one in made:
        for a in one.attacks:
            trial = Trial(a, examples(one.settings.get("attack"), a.step))
            found.setdefault(attack_of(a, headline), []).append(trial)
    return found


def _line(
    name: str,
    control: bool,
    by_seed: Sequence[Sequence[Trial]],
    cases: Sequence[Case],
    measures: Mapping[str, Measure],
    retain: Measure,
) -> Attacked:
    """One attack on a model, over its seeds."""
    every = [trial for trials in by_seed for trial in trials]
    measure = measures[every[0].evaluation.metric]
    found = [_outcome(*pair, measure, retain) for pair in zip(cases, by_seed, strict=True)]
    worst = [one.worst for one in found]
    known = [n for _, n in every if not math.isnan(n)]
    rates = ({(a.data, a.learning_rate) for a, _ in trials} for trials in by_seed)
    return Attacked(
        attack=name,
        control=control,
        measure=measure,
        strongest=tuple(worst),
        worst=Spread(tuple(math.nan if a is None else a.forget for a in worst)),
        retain=Spread(tuple(math.nan if a is None else a.retain for a in worst)),
        gain=Spread(tuple(one.gain for one in found)),
        area=Spread(tuple(one.area for one in found)),
        steps=Spread(tuple(one.steps for one in found)),
        examples=Spread(tuple(one.examples for one in found)),
        trials=tuple(map(len, rates)),
        last=max(a.step for a, _ in every),
        most=max(known, default=math.inf),
        trains=any(a.learning_rate is not None for a, _ in every),
        diverged=sum(map(_diverged, by_seed)),
    )


def _diverged(trials: Sequence[Trial]) -> bool:
    """Whether a seed was attacked, and each of the trials ended without a finite score."""
    ends = finals(trial.evaluation for trial in trials).values()
    return bool(ends) and not any(map(math.isfinite, ends))


def _outcome(case: Case, trials: Sequence[Trial], measure: Measure, retain: Measure) -> Outcome:
    """One seed: at each step its strongest setting and learning rate."""
    before, zero, one = (_score(m, measure) for m in (case.own, case.oracle, case.base))
    curve = by_step((trial.evaluation for trial in trials), measure, retain)
    if not curve:
        return Outcome()
    worst = max(curve.values(), key=strength(measure, retain))
    sign = 1 if measure.higher_is_better else -1
    gain = sign * (worst.forget - before)
    trains = any(trial.evaluation.learning_rate is not None for trial in trials)
    if not (trains and sign * (one - zero) >= MIN_GAP):  # or the base knows no more than the oracle
        return Outcome(worst, gain)
    relearned = shares({step: a.forget for step, a in curve.items()}, zero, one)
    each = shares({i: trial.evaluation.forget for i, trial in enumerate(trials)}, zero, one)
    fewest = min((t.examples for i, t in enumerate(trials) if each[i] >= HALF), default=math.inf)
    known = not any(math.isnan(trial.examples) for trial in trials)
    steps = steps_to(relearned, HALF)
    return Outcome(worst, gain, area(relearned), steps, fewest if known else math.nan)


def _score(made: Logged | None, measure: Measure) -> float:
    """A model's score before attacks."""
    return math.nan if made is None else made.summary["eval"].get(measure.name, math.nan)

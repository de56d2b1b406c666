"""The worst case: the strongest attack among those that leave a useful model.

An attacker wants a model that knows again what it forgot, and still does everything else. So a
point of an attack (its data, learning rate and step) counts only if the model keeps at least
`min_retain` of the retain score that it had before the attack: 0.9 by default. For a retain loss,
where lower is better, it counts if the loss is at most 2 − min_retain times what it was: a loss may
rise by the share by which a score may fall. Both are twice what the stop rule of distillation
concedes to a student (paper §5). With `min_retain=0` every point counts.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from undo_jax.report.records import Evaluation, Measure
from undo_jax.retain_bound import keeps_retain

BOUNDS = (0.95, 0.9, 0.8, 0.0)  # of the table of worst cases

Strength = tuple[float, float]


def within(
    attacks: Iterable[Evaluation], before: Evaluation, retain: Measure, min_retain: float
) -> list[Evaluation]:
    """Returns the evaluations that have a forget score and keep enough of the retain score.

    Args:
        attacks: Evaluations of attacks on one model with one seed.
        before: The evaluation of this model before any attack.
        retain: What the retain score measures.
        min_retain: The share of the retain score that must be kept; 0: no bound.
    """
    return [
        a
        for a in attacks
        if math.isfinite(a.forget)
        and (
            min_retain == 0
            or keeps_retain(a.retain, before.retain, retain.higher_is_better, min_retain)
        )
    ]


def strength(forget: Measure, retain: Measure) -> Callable[[Evaluation], Strength]:
    """Returns a sort key: how strong an attack is and, if equally strong, how much it retains."""

    def key(a: Evaluation) -> Strength:
        retained = a.retain if retain.higher_is_better else -a.retain
        relearned = a.forget if forget.higher_is_better else -a.forget
        return relearned, retained if math.isfinite(retained) else -math.inf

    return key


def worst_by_step(
    attacks: Iterable[Evaluation],
    before: Evaluation,
    forget: Measure,
    retain: Measure,
    min_retain: float,
) -> dict[int, Evaluation]:
    """Returns the worst case at each step at which an attack has a forget score.

    With a bound, it is the strongest point up to that step, for the attacker keeps the best model
    that he has had; where no point qualifies yet, it is the model before the attack. Without one it
    is the strongest at that very step. Of equally strong points, the one that retains most counts.

    Args:
        attacks: Evaluations of attacks on one model with one seed.
        before: The evaluation of this model before any attack; it counts if its forget score is
            finite.
        forget: What the forget score of these attacks measures.
        retain: What the retain score measures.
        min_retain: The share of the retain score that must be kept; 0: no bound.
    """
    evaluations = sorted(attacks, key=lambda a: a.step)
    steps = sorted({a.step for a in evaluations if math.isfinite(a.forget)})
    qualified = within(evaluations, before, retain, min_retain)
    key, curve = strength(forget, retain), {}
    earlier = [before] if min_retain and math.isfinite(before.forget) else []
    for step in steps:
        if candidates := [*earlier, *(a for a in qualified if a.step == step)]:
            curve[step] = max(candidates, key=key)
            earlier = [curve[step]] if min_retain else []
    return curve


def worst(curve: Mapping[int, Evaluation], forget: Measure, retain: Measure) -> Evaluation | None:
    """Returns the worst case over all steps of `worst_by_step`; None if no point has a score."""
    return max(curve.values(), key=strength(forget, retain), default=None)


def shown_bounds(min_retain: float) -> list[float]:
    """Returns the shares of the retain score that are shown beside the one that counts, falling."""
    return sorted({*BOUNDS, min_retain}, reverse=True)


def check_min_retain(min_retain: float) -> None:
    """Raises ValueError for a share of the retain score that is not from 0 to 1."""
    if not 0 <= min_retain <= 1:
        raise ValueError(
            f"min_retain={min_retain:g}: give a share of the retain score from 0 to 1, as 0.9; 0 "
            "is no bound"
        )


def bound_text(retain: Measure, min_retain: float) -> str:
    """Returns which points of attacks count, to go on after "the strongest attack"."""
    if min_retain == 0:
        return "whatever it leaves of the retain score"
    if retain.higher_is_better:
        return (
            f"among those that leave the model at least {100 * min_retain:g} % of its retain score"
        )
    return f"among those that raise the model's retain loss by at most {100 * (1 - min_retain):g} %"


def none_counts(retain: Measure, min_retain: float) -> str:
    """Returns, in words, that no point of any attack counts."""
    condition = bound_text(retain, min_retain).removeprefix("among those ")
    if min_retain == 0:  # all have diverged
        condition = "that have a forget score"
    return f"there are no attacks, at any learning rate and step, {condition}"


def until(min_retain: float) -> str:
    """Returns of which steps attacks count in `worst_by_step`, to go on before "each step"."""
    return "up to" if min_retain else "at"

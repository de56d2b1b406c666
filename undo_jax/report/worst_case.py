"""The strongest attack on a model."""

import math
from collections.abc import Callable, Iterable

from undo_jax.report.records import Evaluation, Measure


def strongest(attacks: Iterable[Evaluation], metric: Measure) -> float:
    """Returns the forget score of the strongest attack: max, or min where lower is better."""
    scores = [a.forget for a in attacks if math.isfinite(a.forget)]
    return (max if metric.higher_is_better else min)(scores, default=math.nan)


def strength(forget: Measure, retain: Measure) -> Callable[[Evaluation], tuple[float, float]]:
    """Returns a sort key: how strong an attack is and, if equally strong, how much it retains."""

    def key(a: Evaluation) -> tuple[float, float]:
        retained = a.retain if retain.higher_is_better else -a.retain
        relearned = a.forget if forget.higher_is_better else -a.forget
        return relearned, retained if math.isfinite(retained) else -math.inf

    return key


def by_step(
    attacks: Iterable[Evaluation], forget: Measure, retain: Measure
) -> dict[int, Evaluation]:
    """Returns the strongest attack at each step; of equal ones, the one that retains most."""
    finite: dict[int, list[Evaluation]] = {}
    for a in sorted(attacks, key=lambda a: a.step):
        if math.isfinite(a.forget):
            finite.setdefault(a.step, []).append(a)
    return {step: max(at_step, key=strength(forget, retain)) for step, at_step in finite.items()}

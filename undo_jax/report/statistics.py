"""Statistics over seeds, and of relearning curves."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from undo_jax.report.numbers import MIN_GAP, Spread

LEVEL = 0.95  # of intervals

Seed = int | None


class Interval(NamedTuple):
    """An interval of a mean over seeds; nan where there are too few."""

    low: float
    high: float


def bootstrap(values: Spread) -> Interval:
    """The 95 % percentile bootstrap interval of the mean of the finite values, always the same.

    Over few seeds it is narrow: of values from a normal distribution it holds the true mean in 75
    of 100 cases for three, in 84 for five, in 89 for ten. nan for fewer than two.
    """
    from scipy import stats

    if len(values.finite) < 2:
        return Interval(math.nan, math.nan)
    found = np.sort(values.finite)  # the order of seeds does not matter
    made = stats.bootstrap((found,), np.mean, confidence_level=LEVEL, method="percentile", rng=0)
    return Interval(*map(float, made.confidence_interval))


def student(values: Spread) -> Interval:
    """Student's 95 % interval of the mean of the finite values; nan for fewer than two."""
    from scipy import stats

    found = values.finite
    if len(found) < 2:
        return Interval(math.nan, math.nan)
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1)) * error
    return Interval(values.mean - reach, values.mean + reach)


def pairs(
    one: Mapping[Seed, float], other: Mapping[Seed, float]
) -> dict[Seed, tuple[float, float]]:
    """Two models' values for each seed that both have.

    A model that is made once for all, under a seed of its own, has one value for each.
    """
    if not one.keys() & other.keys():
        one = dict.fromkeys(other, *one.values()) if len(one) == 1 else one
        other = dict.fromkeys(one, *other.values()) if len(other) == 1 else other
    return {seed: (one[seed], other[seed]) for seed in one if seed in other}


def paired(seeds: Sequence[Seed], values: Spread, of: Sequence[Seed], others: Spread) -> Spread:
    """values − others, by `pairs`; nan for a seed that the others lack."""
    found = pairs(
        dict(zip(seeds, values.values, strict=True)), dict(zip(of, others.values, strict=True))
    )
    shown = seeds if found.keys() & {*seeds} else found  # else made once, and lent to all of these
    both = (found.get(seed, (math.nan, math.nan)) for seed in shown)
    return Spread(tuple(one - other for one, other in both))


def shares(curve: Mapping[int, float], nothing: float, everything: float) -> dict[int, float]:
    """Scores as shares: 0 is `nothing`, a model that never knew; 1 is `everything`, the base.

    nan if these two do not differ by at least MIN_GAP.
    """
    gap = everything - nothing
    gap = gap if abs(gap) >= MIN_GAP else math.nan
    return {step: (score - nothing) / gap for step, score in curve.items()}


def area(curve: Mapping[int, float], last: int = 0) -> float:
    """The area under a curve by trapezoids, as a mean over its steps.

    nan for a single step, and where the curve ends before the step `last`: all attacks diverged.
    """
    steps, scores = list(curve), list(curve.values())
    reach = steps[-1] - steps[0] if steps and steps[-1] >= last else 0
    return float(np.trapezoid(scores, steps)) / reach if reach else math.nan


def steps_to(curve: Mapping[int, float], share: float) -> float:
    """The first step at which a curve of shares has reached a share; infinite if none has."""
    return next((float(step) for step, score in curve.items() if score >= share), math.inf)

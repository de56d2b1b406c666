"""Aggregate metrics of TOFU and MUSE, which compare an unlearned model with the oracle.

Their inputs are one number per text, from `evals.memorisation`, or scores of whole benchmarks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

NINE = [
    f"{part}/{metric}"
    for part in ("retain", "real_authors", "world_facts")
    for metric in ("probability", "rouge", "truth_ratio")
]
FLOOR = 1e-12  # lower bound of 1 − AUC, which PrivLeak divides by


def unless_diverged(measure: Callable[..., float], *inputs: Any) -> float:
    """Returns `measure(*inputs)`, or nan if an input is not finite (the model has diverged)."""
    finite = all(np.all(np.isfinite(np.asarray(values, np.float64))) for values in inputs)
    return measure(*inputs) if finite else math.nan


def forget_quality(truth_ratios: Sequence[float], oracles: Sequence[float]) -> float:
    """Returns the p-value of a two-sample Kolmogorov–Smirnov test (TOFU, 2401.06121, eq. 2).

    Raises ValueError where a model has no truth ratios, or one that is not finite.
    """
    for name, values in (("the model", truth_ratios), ("the oracle", oracles)):
        if not len(values) or not np.all(np.isfinite(values)):
            raise ValueError(f"the truth ratios of {name} are not all numbers: {values!r}")
    test: Any = stats.ks_2samp(truth_ratios, oracles)
    return float(test.pvalue)


def truth_ratio_forget(truth_ratios: Sequence[float]) -> float:
    """Returns the mean of min(r, 1/r) over the forget set: 1 if right and wrong are as likely."""
    ratios = np.maximum(truth_ratios, np.finfo(float).tiny)
    return float(np.mean(np.minimum(ratios, 1 / ratios)))


def truth_ratio_retain(truth_ratios: Sequence[float]) -> float:
    """Returns the mean of max(0, 1 − r) over a retained set: 1 if wrong answers have no mass."""
    return float(np.mean(np.maximum(0.0, 1.0 - np.asarray(truth_ratios))))


def model_utility(scores: Mapping[str, float]) -> float:
    """Returns the harmonic mean of the scores named in `NINE`; 0 if one of them is 0.

    Raises ValueError where a score is missing or below 0.
    """
    missing = [name for name in NINE if not scores.get(name, -1.0) >= 0]
    if missing:
        raise ValueError(f"{', '.join(missing)}: give a number of 0 or more for each of {NINE}")
    return float(stats.hmean([scores[name] for name in NINE]))


def area_under_curve(members: Sequence[float], nonmembers: Sequence[float]) -> float:
    """Returns the AUC of a membership attack: P(score of a member < score of a nonmember).

    Ties count a half. Raises ValueError where one side is empty.
    """
    if not len(members) or not len(nonmembers):
        raise ValueError("members and nonmembers: give at least one score of each")
    above = stats.mannwhitneyu(nonmembers, members).statistic
    return float(above / (len(members) * len(nonmembers)))


def privacy_leak(area: float, oracles: float = 0.5) -> float:
    """Returns PrivLeak in percent: 0 for the oracle, below 0 if texts look like training data.

    It is 100 · (AUC_oracle − AUC) / (1 − AUC_oracle) (MUSE, Shi et al., 2407.06460, section 3).
    """
    for name, value in (("area", area), ("oracles", oracles)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: an AUC is from 0 to 1")
    return 100 * (oracles - area) / max(1 - oracles, FLOOR)

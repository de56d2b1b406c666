"""How near an unlearned model is to the oracle, by the measures of TOFU and MUSE.

Each takes one number a text, of `evals.memorisation` or of whole benchmarks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

NINE = [
    f"{part}/{what}"
    for part in ("retain", "real_authors", "world_facts")
    for what in ("probability", "rouge", "truth_ratio")
]
FLOOR = 1e-12  # of 1 − AUC, which PrivLeak divides by


def unless_diverged(measure: Callable[..., float], *given: Any) -> float:
    """`measure(*given)`, or nan where a number of what is given is none: the model has diverged."""
    known = all(np.all(np.isfinite(np.asarray(one, np.float64))) for one in given)
    return measure(*given) if known else math.nan


def forget_quality(truth_ratios: Sequence[float], oracles: Sequence[float]) -> float:
    """The p-value of a two-sample Kolmogorov–Smirnov test (TOFU, Maini et al., 2401.06121, eq. 2).

    Raises ValueError where a model has no truth ratios, or one that is no number.
    """
    for name, values in (("the model", truth_ratios), ("the oracle", oracles)):
        if not len(values) or not np.all(np.isfinite(values)):
            raise ValueError(f"the truth ratios of {name} are not all numbers: {values!r}")
    found: Any = stats.ks_2samp(truth_ratios, oracles)
    return float(found.pvalue)


def forgotten(truth_ratios: Sequence[float]) -> float:
    """The mean of min(r, 1/r) over the forget set: 1 where right and wrong are as likely."""
    ratios = np.maximum(truth_ratios, np.finfo(float).tiny)
    return float(np.mean(np.minimum(ratios, 1 / ratios)))


def kept(truth_ratios: Sequence[float]) -> float:
    """The mean of max(0, 1 − r) over what is retained: 1 where wrong answers have no mass."""
    return float(np.mean(np.maximum(0.0, 1.0 - np.asarray(truth_ratios))))


def model_utility(scores: Mapping[str, float]) -> float:
    """The harmonic mean of TOFU's nine numbers, by the names of `NINE`; 0 if one of them is.

    Raises ValueError where one is missing or below 0.
    """
    missing = [name for name in NINE if not scores.get(name, -1.0) >= 0]
    if missing:
        raise ValueError(f"{', '.join(missing)}: give a number of 0 or more for each of {NINE}")
    return float(stats.hmean([scores[name] for name in NINE]))


def area_under_curve(members: Sequence[float], others: Sequence[float]) -> float:
    """P(a member's score < another's), equal ones a half: the AUC of a membership attack.

    Scores are lower in texts that were trained, as those of `evals.memorisation`. Raises ValueError
    where one side is empty.
    """
    if not len(members) or not len(others):
        raise ValueError("members and others: give one score at least of each")
    above = stats.mannwhitneyu(others, members).statistic
    return float(above / (len(members) * len(others)))


def privacy_leak(area: float, oracles: float = 0.5) -> float:
    """PrivLeak in percent: 0 as the oracle; below: the texts look trained, as before unlearning.

    100 · (AUC_oracle − AUC) / (1 − AUC_oracle) (MUSE, Shi et al., 2407.06460, section 3).
    """
    for name, value in (("area", area), ("oracles", oracles)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: an AUC is from 0 to 1")
    return 100 * (oracles - area) / max(1 - oracles, FLOOR)

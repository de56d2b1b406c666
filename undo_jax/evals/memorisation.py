"""Metrics of how well a model knows an answer, from the `TokenStats` of its tokens.

Each function takes the statistics of one text's L tokens, in order, as NumPy arrays, and returns
one number. Definitions are open-unlearning's (Dorna et al., 2506.12618, appendix on metrics).
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

LEAST = 1e-6  # lower bound of the deviation of log p that min-k++ divides by


def probability(log_p: Float[ndarray, " L"]) -> float:
    """Returns the geometric mean of the tokens' probabilities, p(answer)^(1/L)."""
    return float(np.exp(np.mean(_nonempty(log_p))))


def exact_memorisation(likeliest: Bool[ndarray, " L"]) -> float:
    """Returns the share of tokens that are the most likely ones given those before them."""
    return float(np.mean(_nonempty(likeliest)))


def extraction_strength(likeliest: Bool[ndarray, " L"]) -> float:
    """Returns 1 − k/L, where k is the shortest prefix that the model completes greedily."""
    wrong = np.flatnonzero(~_nonempty(likeliest).astype(bool))
    return 1.0 - (0 if not len(wrong) else int(wrong[-1]) + 1) / len(likeliest)


def mean_memorisation(texts: Sequence[Any]) -> dict[str, float]:
    """Returns means over texts of `exact_memorisation` and `extraction_strength`, by name.

    `texts` are the `TokenStats` of each text, in NumPy.
    """
    measures = exact_memorisation, extraction_strength
    return {
        measure.__name__: float(np.mean([measure(stats.likeliest) for stats in texts]))
        for measure in measures
    }


def truth_ratio(paraphrase: float, wrong: Sequence[float]) -> float:
    """Returns the mean `probability` of wrong answers over that of the paraphrased one (TOFU).

    Raises ValueError without a wrong answer.
    """
    return float(np.mean(_nonempty(np.asarray(wrong))) / max(paraphrase, np.finfo(float).tiny))


# ------------------------------------ membership scores: lower for texts of the training data


def loss(log_p: Float[ndarray, " L"]) -> float:
    """Returns the mean cross entropy, in nats per token."""
    return float(-np.mean(_nonempty(log_p)))


def zlib_loss(log_p: Float[ndarray, " L"], text: str) -> float:
    """Returns the loss divided by the bytes of the compressed text."""
    return loss(log_p) / len(zlib.compress(text.encode()))


def min_k(log_p: Float[ndarray, " L"], share: float = 0.4) -> float:
    """Returns the negative mean of the lowest `share` of log-probabilities (Shi et al., 2023).

    At least one token counts.
    """
    return float(-np.mean(_lowest(_nonempty(log_p), share)))


def min_k_plus_plus(
    log_p: Float[ndarray, " L"],
    mean: Float[ndarray, " L"],
    deviation: Float[ndarray, " L"],
    share: float = 0.4,
) -> float:
    """Returns `min_k` of log-probabilities standardised per token (Zhang et al., 2404.02936)."""
    standard = (_nonempty(log_p) - mean) / np.maximum(deviation, LEAST)
    return float(-np.mean(_lowest(standard, share)))


def _lowest(values: ndarray, share: float) -> ndarray:
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a number above 0, at most 1")
    return np.sort(values)[: max(1, int(len(values) * share))]


def _nonempty(values: ndarray) -> ndarray:
    if not len(values):
        raise ValueError("a text without tokens has no score: leave it out")
    return np.asarray(values)

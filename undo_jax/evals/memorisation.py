"""How well a model knows given answers, one number a text, from `evals.tokens` on the host.

Each function takes one text: the values of its answer's tokens, [L], in order. As open-unlearning
computes them (Dorna et al., 2506.12618, appendix on metrics).
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

LEAST = 1e-6  # a deviation of log p that min-k++ divides by


def probability(log_p: Float[ndarray, " L"]) -> float:
    """The geometric mean of the tokens' probabilities, p(answer)^(1/L)."""
    return float(np.exp(np.mean(_some(log_p))))


def exact_memorisation(likeliest: Bool[ndarray, " L"]) -> float:
    """The share of tokens that the model would choose itself, given those before."""
    return float(np.mean(_some(likeliest)))


def extraction_strength(likeliest: Bool[ndarray, " L"]) -> float:
    """1 − k/L, with k the shortest prefix after which the model writes the rest by itself."""
    wrong = np.flatnonzero(~_some(likeliest).astype(bool))
    return 1.0 - (0 if not len(wrong) else int(wrong[-1]) + 1) / len(likeliest)


def mean_of(told: Sequence[Any]) -> dict[str, float]:
    """The means over texts of the last two, by their names, of `Told` in NumPy."""
    measures = exact_memorisation, extraction_strength
    return {
        measure.__name__: float(np.mean([measure(one.likeliest) for one in told]))
        for measure in measures
    }


def truth_ratio(paraphrase: float, wrong: Sequence[float]) -> float:
    """The mean `probability` of wrong answers over that of the right one, paraphrased (TOFU).

    Raises ValueError without a wrong answer.
    """
    return float(np.mean(_some(np.asarray(wrong))) / max(paraphrase, np.finfo(float).tiny))


# ------------------------------------------ scores of membership: lower in texts that were trained


def loss(log_p: Float[ndarray, " L"]) -> float:
    """Mean cross entropy, in nats a token."""
    return float(-np.mean(_some(log_p)))


def zlib_loss(log_p: Float[ndarray, " L"], text: str) -> float:
    """The loss over the bytes of the compressed text."""
    return loss(log_p) / len(zlib.compress(text.encode()))


def min_k(log_p: Float[ndarray, " L"], share: float = 0.4) -> float:
    """Less the mean of the lowest `share` of log-probabilities, one at least (Shi et al., 2023)."""
    return float(-np.mean(_lowest(_some(log_p), share)))


def min_k_plus_plus(
    log_p: Float[ndarray, " L"],
    mean: Float[ndarray, " L"],
    deviation: Float[ndarray, " L"],
    share: float = 0.4,
) -> float:
    """`min_k` of log-probabilities in deviations from their mean (Zhang et al., 2404.02936)."""
    standard = (_some(log_p) - mean) / np.maximum(deviation, LEAST)
    return float(-np.mean(_lowest(standard, share)))


def _lowest(values: ndarray, share: float) -> ndarray:
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a number above 0, at most 1")
    return np.sort(values)[: max(1, int(len(values) * share))]


def _some(values: ndarray) -> ndarray:
    if not len(values):
        raise ValueError("a text without tokens has no score: leave it out")
    return np.asarray(values)

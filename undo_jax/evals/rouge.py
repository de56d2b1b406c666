"""ROUGE-L of what a model writes: the longest common subsequence of words with a reference.

By the package `rouge-score`, the extra `undo-jax[rouge]`, with its Porter stemmer.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np


def scorer() -> Any:
    """Its scorer. Raises ModuleNotFoundError, in one line, where the package is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "rouge-score is not installed; run `pip install undo_jax[rouge]`", name="rouge_score"
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(
    references: Sequence[str], texts: Sequence[str], kind: Literal["recall", "fmeasure"] = "recall"
) -> float:
    """Mean over texts of their ROUGE-L recall, or F1."""
    judge = scorer()
    pairs = zip(references, texts, strict=True)
    return float(np.mean([getattr(judge.score(*pair)["rougeL"], kind) for pair in pairs]))

"""ROUGE-L: the longest common subsequence of words of a text and a reference.

It is computed by the package `rouge-score`, extra `rouge`, with its Porter stemmer.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from undo_jax.runtime.install import install_command


def scorer() -> Any:
    """Returns the package's scorer. Raises ModuleNotFoundError where it is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"rouge-score is not installed: {install_command('rouge')}", name="rouge_score"
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(
    references: Sequence[str], texts: Sequence[str], kind: Literal["recall", "fmeasure"] = "recall"
) -> float:
    """Returns the mean ROUGE-L recall, or F1, over texts."""
    score = scorer().score
    pairs = zip(references, texts, strict=True)
    return float(np.mean([getattr(score(*pair)["rougeL"], kind) for pair in pairs]))

"""Membership inference: how well a model's scores separate texts that it was trained on.

An area under the ROC curve (AUC) of 1/2 is chance, of 1 perfect separation.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from undo_jax.evals import memorisation
from undo_jax.evals.tofu_muse import area_under_curve, privacy_leak, unless_diverged

LABELS = {
    "auc_loss": "AUC by loss",
    "auc_zlib": "AUC by loss over zlib bytes",
    "auc_min_k": "AUC by min-k",
    "auc_min_k_plus_plus": "AUC by min-k++",
}


def areas(
    members: Iterable[tuple[Any, str]], nonmembers: Iterable[tuple[Any, str]]
) -> dict[str, float]:
    """Returns the AUC of each score in `LABELS`. A text is given with its `TokenStats` in NumPy."""

    def scores(stats: Any, text: str) -> tuple[float, ...]:
        log_p, _, mean, deviation = stats
        return (
            memorisation.loss(log_p),
            memorisation.zlib_loss(log_p, text),
            memorisation.min_k(log_p),
            memorisation.min_k_plus_plus(log_p, mean, deviation),
        )

    columns = [
        zip(*(scores(*text) for text in texts), strict=True) for texts in (members, nonmembers)
    ]
    by_score = zip(LABELS, *columns, strict=True)
    return {name: unless_diverged(area_under_curve, *both) for name, *both in by_score}


def leak(model: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> float:
    """Returns PrivLeak by min-k, in percent; without an oracle its AUC is 1/2 (MUSE)."""
    oracle_area = 0.5 if oracle is None else oracle["auc_min_k"]
    return unless_diverged(privacy_leak, model["auc_min_k"], oracle_area)

"""Whether a model tells texts that it was trained on from others: areas under the curve.

Names are those of metrics; an area of 1/2 is chance, 1 means that all are told apart.
"""

from collections.abc import Mapping, Sequence
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
    members: Sequence[tuple[Any, str]], others: Sequence[tuple[Any, str]]
) -> dict[str, float]:
    """An area by each score, of texts with what a model says of their tokens, `Told` in NumPy."""

    def scores(told: Any, text: str) -> tuple[float, ...]:
        log_p, _, mean, deviation = told
        return (
            memorisation.loss(log_p),
            memorisation.zlib_loss(log_p, text),
            memorisation.min_k(log_p),
            memorisation.min_k_plus_plus(log_p, mean, deviation),
        )

    sides = [list(zip(*(scores(*one) for one in side), strict=True)) for side in (members, others)]
    pairs = zip(LABELS, *sides, strict=True)
    return {name: unless_diverged(area_under_curve, *both) for name, *both in pairs}


def leak(own: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> float:
    """PrivLeak by min-k, in percent; without an oracle 1/2 stands for its area (MUSE)."""
    theirs = 0.5 if oracle is None else oracle["auc_min_k"]
    return unless_diverged(privacy_leak, own["auc_min_k"], theirs)

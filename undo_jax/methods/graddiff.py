"""Gradient difference: ascend on forget, descend on retain (paper §2; arXiv 2203.12817)."""

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar, cross_entropy
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def graddiff(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    retain_weight: float = 1.0,  # reference: 1 for language, 15 for arithmetic
) -> tuple[Scalar, Metrics]:
    """L = −CE(forget) + retain_weight · CE(retain). Only few steps bound the ascent.

    Raises ValueError for a negative weight.
    """
    check_constant("retain_weight", retain_weight, zero=True)
    forget = cross_entropy(lm, params, batch["forget"])
    retain = cross_entropy(lm, params, batch["retain"])
    return retain_weight * retain - forget, {"forget_ce": forget, "retain_ce": retain}

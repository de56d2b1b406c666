"""Maximum entropy: make every next token on forget equally likely (paper §2)."""

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar, cross_entropy, uniform_kl
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def maxent(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    retain_weight: float = 1.0,  # reference: 1 for language and arithmetic
) -> tuple[Scalar, Metrics]:
    """L = KL(uniform ‖ p) on forget + retain_weight · CE(retain).

    Raises ValueError for a negative weight.
    """
    check_constant("retain_weight", retain_weight, zero=True)
    forget = uniform_kl(lm, params, batch["forget"])
    retain = cross_entropy(lm, params, batch["retain"])
    return forget + retain_weight * retain, {"forget_uniform_kl": forget, "retain_ce": retain}

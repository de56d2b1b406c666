"""Negative preference optimization (Zhang et al., arXiv 2404.05868)."""

import jax
import jax.numpy as jnp

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar, by_sequence, cross_entropy, log_probabilities
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def npo(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    beta: float = 0.1,  # open-unlearning: 0.1
    retain_weight: float = 1.0,  # open-unlearning: 1
) -> tuple[Scalar, Metrics]:
    """L = −(2/β) log σ(−β Σ_t log(p / p_base)) on forget + retain_weight · CE(retain).

    The sum is over a sequence's tokens. Bounded below by 0; β → 0 is gradient ascent.
    Raises ValueError for a β that is not above 0, and for a negative weight.
    """
    check_constant("beta", beta)
    check_constant("retain_weight", retain_weight, zero=True)
    base, rows = refs["base"], batch["forget"]
    of_base = log_probabilities(base.lm, jax.lax.stop_gradient(base.params), rows)
    ratios = by_sequence(rows, log_probabilities(lm, params, rows) - of_base)
    losses = -2 / beta * jax.nn.log_sigmoid(-beta * ratios.totals)
    forget = jnp.sum(ratios.weights * losses)
    retain = cross_entropy(lm, params, batch["retain"])
    return forget + retain_weight * retain, {"forget_npo": forget, "retain_ce": retain}

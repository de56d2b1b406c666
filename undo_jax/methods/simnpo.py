"""NPO without a reference model, normalised by length (Fan et al., arXiv 2410.07163)."""

import jax
import jax.numpy as jnp

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar, by_sequence, cross_entropy, log_probabilities
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def simnpo(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    beta: float = 4.5,  # open-unlearning: 4.5
    delta: float = 0.0,  # nats a token; open-unlearning: 0. The paper's margin γ is βδ
    forget_weight: float = 0.125,  # open-unlearning: 0.125
    retain_weight: float = 1.0,  # open-unlearning: 1
) -> tuple[Scalar, Metrics]:
    """L = forget_weight · −(2/β) log σ(β (NLL − δ)) on forget + retain_weight · CE(retain).

    NLL is the mean over a sequence's tokens. Raises ValueError for a β that is not above 0, and for
    a negative weight.
    """
    check_constant("beta", beta)
    check_constant("forget_weight", forget_weight, zero=True)
    check_constant("retain_weight", retain_weight, zero=True)
    rows = batch["forget"]
    nll = by_sequence(rows, -log_probabilities(lm, params, rows))
    losses = -2 / beta * jax.nn.log_sigmoid(beta * (nll.totals / nll.lengths - delta))
    forget = jnp.sum(nll.weights * losses)
    retain = cross_entropy(lm, params, batch["retain"])
    loss = forget_weight * forget + retain_weight * retain
    return loss, {"forget_simnpo": forget, "retain_ce": retain}

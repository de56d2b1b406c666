"""Self-distillation with adjusted logits (Dong et al., arXiv 2402.10052)."""

import jax
import jax.numpy as jnp

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar, cross_entropy, of_head
from undo_jax.ops.head_losses import by_autodiff
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def undial(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    beta: float = 10.0,  # nats; open-unlearning: 10
    retain_weight: float = 1.0,  # open-unlearning: 0, no retain term
) -> tuple[Scalar, Metrics]:
    """L = CE(softmax(y − β · onehot(target)), p) on forget + retain_weight · CE(retain).

    y are the base's logits: p learns the base's distribution, with the target made less likely.
    Raises ValueError for a negative β or weight.
    """
    check_constant("beta", beta, zero=True)
    check_constant("retain_weight", retain_weight, zero=True)
    forget = of_head(LOWERED, lm, params, batch["forget"], refs["base"], extra=beta)
    retain = cross_entropy(lm, params, batch["retain"])
    return forget + retain_weight * retain, {"forget_undial": forget, "retain_ce": retain}


def _lowered(z, tokens, y):
    """Returns the loss of logits z and y, [N, V]; `tokens.extra` is β."""
    hot = jax.nn.one_hot(tokens.targets, z.shape[-1])
    target = jax.nn.softmax(y - tokens.extra[:, None] * hot)
    return -jnp.sum(target * jax.nn.log_softmax(z), -1)


LOWERED = by_autodiff(_lowered)

"""Representation misdirection (paper §2; Li et al., arXiv 2403.03218)."""

import jax
import jax.numpy as jnp

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar, mse
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def rmu(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    read_layer: int,  # the residual stream after this many layers; reference: 11 of 14
    coefficient: float = 6.0,  # reference: 6.5 for language, 6 for arithmetic
    retain_weight: float = 200.0,  # reference: 1200 for language, 200 for arithmetic
    direction_seed: int = 0,
) -> tuple[Scalar, Metrics]:
    """L = MSE(h(forget), c·u) + retain_weight · MSE(h(retain), h_base(retain)), u a random unit.

    Which parameters train is set in the recipe; reference: `Unlearn(trains=Trains(((r"mlp/down$",
    range(5, 11)),)))`, layers below the one that is read: later ones have no gradient. (The
    reference names layer 11, too, to no effect.) Raises ValueError for a layer that is not there,
    and for a negative weight.
    """
    check_constant("retain_weight", retain_weight, zero=True)
    base = refs["base"]
    forget, retain = batch["forget"], batch["retain"]
    direction = jax.random.normal(jax.random.key(direction_seed), lm.table(params).shape[1:])
    target = coefficient * direction / jnp.linalg.norm(direction)
    steered = lm.activations(params, forget.inputs, read_layer)
    retained = lm.activations(params, retain.inputs, read_layer)
    base_states = jax.lax.stop_gradient(base.lm.activations(base.params, retain.inputs, read_layer))
    forget_mse = mse(steered, target, forget.weights)
    retain_mse = mse(retained, base_states, retain.weights)
    loss = forget_mse + retain_weight * retain_mse
    return loss, {"forget_mse": forget_mse, "retain_mse": retain_mse}

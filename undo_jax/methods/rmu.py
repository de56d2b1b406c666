"""Representation misdirection (paper §2; Li et al., arXiv 2403.03218)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from undo_jax.losses import Scalar
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs


def rmu(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    read_layer: int,  # the residual stream after this many layers; reference: 11 of 14
    train_layers: tuple[int, int],  # first and last layer whose MLP down-projection moves: 5 to 10
    coefficient: float = 6.0,  # reference: 6.5 for language, 6 for arithmetic
    retain_weight: float = 200.0,  # reference: 1200 for language, 200 for arithmetic
    direction_seed: int = 0,
) -> tuple[Scalar, Metrics]:
    """L = MSE(h(forget), c·u) + retain_weight · MSE(h(retain), h_base(retain)), u a random unit.

    Only the MLP down-projections of `train_layers` receive a gradient. Raises ValueError where
    they are not layers before the one that is read.
    """
    if not 0 <= train_layers[0] <= train_layers[1] < read_layer:
        raise ValueError(f"{train_layers=}: give layers from 0 to below read_layer={read_layer}")
    params, base = _train_only(params, *train_layers), refs["base"]
    forget, retain = batch["forget"], batch["retain"]
    direction = jax.random.normal(jax.random.key(direction_seed), lm.table(params).shape[1:])
    target = coefficient * direction / jnp.linalg.norm(direction)
    steered = lm.activations(params, forget.inputs, read_layer)
    kept = lm.activations(params, retain.inputs, read_layer)
    wanted = jax.lax.stop_gradient(base.lm.activations(base.params, retain.inputs, read_layer))
    forget_mse = _mse(steered, target, forget.weights)
    retain_mse = _mse(kept, wanted, retain.weights)
    loss = forget_mse + retain_weight * retain_mse
    return loss, {"forget_mse": forget_mse, "retain_mse": retain_mse}


def _mse(h: Float[Array, "B T D"], target: Array, weights: Float[Array, "B T"]) -> Scalar:
    """Mean over D, weighted over tokens, in fp32."""
    error = jnp.square(h.astype(jnp.float32) - target.astype(jnp.float32))
    return jnp.sum(weights * jnp.mean(error, -1))


def _train_only(params: Params, first: int, last: int) -> Params:
    """The same values; a gradient reaches only `layers/mlp/down` of layers first..last."""
    frozen = jax.tree.map(jax.lax.stop_gradient, params)
    down = params["layers"]["mlp"]["down"]
    layer = jnp.arange(down.shape[0])[:, None, None]
    trained = jnp.where((first <= layer) & (layer <= last), down, jax.lax.stop_gradient(down))
    mlp = {**frozen["layers"]["mlp"], "down": trained}
    return {**frozen, "layers": {**frozen["layers"], "mlp": mlp}}

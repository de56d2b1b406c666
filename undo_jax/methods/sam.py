"""Sharpness-aware minimisation of another method (paper's baseline; Foret et al., 2010.01412)."""

import jax
import jax.numpy as jnp
import optax

from undo_jax.losses import Scalar
from undo_jax.types import LM, Batch, Key, Loss, Metrics, Params, Refs


def sam(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    method: Loss,  # e.g. maxent, or partial(rmu, ...)
    rho: float = 0.05,  # reference: .05, and .01 for RMU and WMDP
) -> tuple[Scalar, Metrics]:
    """L = method(θ + ρ g / ‖g‖), g the method's gradient at θ: its worst within ρ, to first order.

    The gradient is the one there; two passes a step. With accumulation every part of the batch has
    its own g.
    """
    here = jax.lax.stop_gradient(params)
    gradient, _ = jax.grad(method, argnums=1, has_aux=True)(lm, here, refs, batch, key)
    scale = rho / jnp.maximum(optax.tree.norm(gradient), 1e-12)
    worst = jax.tree.map(lambda w, g: w + scale * g, params, gradient)
    return method(lm, worst, refs, batch, key)

"""Sharpness-aware minimisation of another method (paper's baseline; Foret et al., 2010.01412)."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from undo_jax.checks import check_constant
from undo_jax.losses import Scalar
from undo_jax.training.optim import Trains, pick, put
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
    trains: Trains | None = None,  # what ρ perturbs: give the same as `Unlearn(trains=...)`
) -> tuple[Scalar, Metrics]:
    """L = method(θ + ρ g / ‖g‖), g the method's gradient at θ: to first order, its worst within ρ.

    θ is what trains. The gradient of L is the method's at the perturbed point: two passes per step.
    With accumulation each microbatch has its own g. Raises ValueError for a ρ below 0.
    """
    check_constant("rho", rho, zero=True)
    frozen = lax.stop_gradient(params)
    trained = pick(trains, frozen)
    refs = {name: ref._replace(params=lax.stop_gradient(ref.params)) for name, ref in refs.items()}

    def method_at(point):
        return method(lm, put(trains, frozen, point), refs, batch, key)

    def evaluate(gradient, _):
        """Returns the gradient and value at θ + ρ g / ‖g‖; for g = 0 that is θ."""
        scale = rho / jnp.maximum(optax.tree.norm(gradient), 1e-12)
        worst = jax.tree.map(lambda w, g: w + scale * g, trained, gradient)
        value, gradient = jax.value_and_grad(method_at, has_aux=True)(worst)
        return gradient, value

    # a scan: it compiles once, and XLA fails on two passes inline (fp32 over fsdp and tensor)
    gradient, values = lax.scan(evaluate, jax.tree.map(jnp.zeros_like, trained), length=2)
    loss, metrics = jax.tree.map(lambda x: x[1], values)
    zero = jax.tree.map(jnp.subtract, pick(trains, params), trained)  # has a derivative
    return loss + optax.tree.vdot(gradient, zero), metrics

"""Size of a model's parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from undo_jax.evals.generate import WHOLE
from undo_jax.runtime.sharding import constrain
from undo_jax.setting import Setting
from undo_jax.types import LM, Params, parameters


def parameter_norm(lm: LM, params: Params, setting: Setting) -> dict[str, float]:
    """Returns the L2 norm ‖θ‖ of all parameters, and their root mean square ‖θ‖ / √n."""
    norm = float(_norm(params))
    return {"l2": norm, "rms": norm / parameters(lm) ** 0.5}


@jax.jit
def _norm(params: Params) -> Float[Array, ""]:
    """Returns the norm in fp32, on every process."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)]
    return constrain(jnp.sqrt(jnp.sum(jnp.stack(squares))), WHOLE)

"""Noise on chosen parts of a model alone, e.g. the MLPs of some layers."""

from jaxtyping import Array, Float

from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.training.optim import Trains, pick, put
from undo_jax.types import LM, Key, Params


def targeted(
    lm: LM,
    key: Key,
    params: Params,
    alpha: Float[Array, ""] | float,
    *,
    parts: Trains,
    beta: float = 0.1,
) -> Params:
    """`shrink_perturb` of the leaves and layers that `parts` names; other weights are unchanged.

    The noise there is that of `shrink_perturb` with the same key. `optim.share` says which share of
    the weights that is. Raises what `optim.pick` raises.
    """
    noised = shrink_perturb(lm, key, params, alpha, beta=beta)
    return put(parts, params, pick(parts, noised))

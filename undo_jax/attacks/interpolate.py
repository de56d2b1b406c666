"""Interpolation towards the base, which an attacker has where it is published (linear paths)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from undo_jax.attack import Attack, name_relearning
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Params


def interpolate(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    base: Any = None,
    share: float = 0.5,
    stream: str = "forget",
) -> Attack:
    """θ' = (1 − share) θ + share θ_base; then, with a `training`, relearn from there.

    `base` is the recipe of the base, e.g. one of the experiment's models. This is a control:
    whoever has the base needs no attack, and with `share` = 1 any model becomes the base. Compare
    the smallest share at which knowledge comes back with that of the oracle.

    Raises ValueError for a share outside [0, 1], and if the two models differ in shape.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is outside [0, 1]: 0 is the model, 1 the base")
    return Attack(
        name_relearning(f"interpolate-{share:g}", training, stream, "-relearn"),
        training,
        learning_rates,
        stream=stream,
        prepare=partial(between, share=share),
        keep_at=keep_at,
        extra_models=() if base is None else (base,),
        control=True,
    )


def between(lm: LM, params: Params, key: Key, *extra_params: Params, share: float) -> Params:
    """Returns parameters on the line to the base's. Raises ValueError as `interpolate` does."""
    (base_params,) = check_base("interpolate", params, extra_params)
    return jax.tree.map(lambda w, b: (1 - share) * w + share * b, params, base_params)


def check_base(attack: str, params: Params, extra_params: tuple[Params, ...]) -> tuple[Params]:
    """Returns `extra_models`. Raises ValueError if it is not one model of the shape of `params`."""
    if len(extra_params) != 1:
        raise ValueError(f"{attack} needs the base: give base=, the recipe of that model")
    shapes, base_shapes = (jax.tree.map(jnp.shape, tree) for tree in (params, *extra_params))
    if shapes != base_shapes:
        raise ValueError(f"{attack} needs a base of the model's own shape: attack another model")
    return extra_params

"""Linear probe: whether a layer's states tell answers, though the model does not say them."""

from functools import partial
from typing import Any

import jax.numpy as jnp

from undo_jax.attack import Attack
from undo_jax.models.wrappers import Probed
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Params, table_shape


def linear_probe(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    layer: int = 1,
    relearned: str = "half",
    examined: str = "other_half",
) -> Attack:
    """Fit logistic regression from the states after `layer` layers to the next token.

    It trains on one fold of the forgotten facts, and what counts is the score on another, as in
    `held_out`; the model is frozen. It is a control: a model that never knew has states, too, from
    which how questions are answered can be read, so compare with the oracle. Raises ValueError for
    a layer that a model lacks.
    """
    adapt: Any = partial(Probed, layer=layer)
    return Attack(
        f"linear_probe-{layer}",
        training,
        learning_rates,
        stream=f"forget/{relearned}",
        metric=examined,
        adapt=adapt,
        prepare=beside,
        trains=Trains(((r"^probe$", None),)),
        keep_at=keep_at,
        control=True,
    )


def beside(lm: LM, params: Params, key: Key) -> Params:
    """The model's parameters, and a probe that finds every token equally likely."""
    return {"probe": jnp.zeros(table_shape(lm).shape), "model": params}

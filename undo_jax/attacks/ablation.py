"""Direction ablation: removing in which way unlearning moved the states (2409.18025)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from undo_jax.attack import Attack
from undo_jax.models.wrappers import Ablated, check_layer, check_tokens
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Packed, Params, Taps

LEAST = 1e-4  # of the states' mean: a direction that is shorter is of rounding errors, and is none
Rows = tuple[tuple[int, ...], ...]  # token ids [B, T]


def ablation(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    base: Any = None,
    tokens: Rows = (),
    after: tuple[int, ...] = (1,),
    stream: str = "forget",
) -> Attack:
    """Remove a direction from the residual stream after each of `after` layers: h − (h·d) d.

    d is that of the mean of h − h_base over `tokens`, rows of forgotten text as `rows` gives them.
    `base` is the recipe of the base; as in `interpolate`, whoever has it needs no attack, so this
    is a control. The source also leaves out outliers, and questions that the model still answers.
    With a `training`, relearn from there.

    Raises ValueError for no base or one of another shape, no tokens, no layers, and tokens and
    layers that the model lacks.
    """
    if not after or len({*after}) < len(after):
        raise ValueError(f"after={after}: give one number of layers at least, and each once")
    adapt: Any = partial(Ablated, removed_after=tuple(after))
    return Attack(
        "ablation" + ("" if training is None else "-relearn"),
        training,
        learning_rates,
        stream=stream,
        adapt=adapt,
        prepare=partial(ablated, tokens=tuple(map(tuple, tokens)), after=tuple(after)),
        keep_at=keep_at,
        others=() if base is None else (base,),
        control=True,
    )


def ablated(
    lm: LM, params: Params, key: Key, *others: Params, tokens: Rows, after: tuple[int, ...]
) -> Params:
    """The model's parameters, and the directions. Raises ValueError as `ablation` does."""
    if len(others) != 1:
        raise ValueError("ablation needs the base: give base=, the recipe of that model")
    if not tokens or not all(tokens):
        raise ValueError("ablation needs tokens: give rows of forgotten text, as `rows` does")
    check_tokens(lm, tokens)
    for layer in after:
        check_layer(lm, layer)
    own, of_base = (jax.tree.map(jnp.shape, tree) for tree in (params, *others))
    if own != of_base:
        raise ValueError("ablation needs a base of the model's own shape: attack another model")

    def means(params: Params) -> jax.Array:
        states = lm.tapped(params, jnp.asarray(tokens), Taps(residual=after))[1].residual
        return jnp.mean(states.astype(jnp.float32), axis=(1, 2))

    at_base = means(others[0])
    direction, size = means(params) - at_base, partial(jnp.linalg.norm, axis=1, keepdims=True)
    told = size(direction) > LEAST * size(at_base)
    return {"directions": jnp.where(told, direction, 0), "model": params}


def rows(setting: Any, count: int, seed: int = 0, stream: str = "forget") -> Rows:
    """The first `count` rows of a stream, as ids of tokens. Raises ValueError for fewer than 1."""
    if count < 1:
        raise ValueError(f"rows={count}: give 1 or more")
    found = setting.stream(stream, count, seed)[0, slice(None)]
    found = np.asarray(found.tokens if isinstance(found, Packed) else found)
    return tuple(tuple(row.tolist()) for row in found)

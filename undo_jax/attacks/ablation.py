"""Direction ablation: undo the direction in which unlearning moved the states (2409.18025)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from undo_jax.attack import Attack, name_relearning
from undo_jax.attacks.interpolate import check_base
from undo_jax.models.wrappers import Ablated, check_layer, check_tokens
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Packed, Params, Taps

MIN_NORM = 1e-4  # times that of the mean state: a shorter direction is a rounding error, and 0
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

    d = mean(h − h_base) / ‖mean(h − h_base)‖ over `tokens`. It needs the base model, and whoever
    has that needs no attack: so this is a control, as `interpolate`. Unlike in the paper, outliers
    and questions that the model still answers are not left out.

    Args:
        training: relearning after the ablation; None: none.
        learning_rates: times the rate of the training's optimizer.
        keep_at: steps at which parameters are kept.
        base: the recipe of the base model.
        tokens: rows of forgotten text, as `rows` returns them.
        after: numbers of layers.
        stream: the stream of relearning.

    Raises:
        ValueError: for no base or one of another shape, no tokens, no layers, and tokens and
            layers that the model lacks.
    """
    if not after or len({*after}) < len(after):
        raise ValueError(f"after={after}: give distinct numbers of layers, at least one")
    adapt: Any = partial(Ablated, removed_after=tuple(after))
    return Attack(
        name_relearning("ablation", training, stream, "-relearn"),
        training,
        learning_rates,
        stream=stream,
        adapt=adapt,
        prepare=partial(ablated, tokens=tuple(map(tuple, tokens)), after=tuple(after)),
        keep_at=keep_at,
        extra_models=() if base is None else (base,),
        control=True,
    )


def ablated(
    lm: LM, params: Params, key: Key, *extra_params: Params, tokens: Rows, after: tuple[int, ...]
) -> Params:
    """Returns the model's parameters, and the directions. Raises ValueError as `ablation` does."""
    (base_params,) = check_base("ablation", params, extra_params)
    if not tokens or not all(tokens):
        raise ValueError("ablation needs tokens: give rows of forgotten text, as `rows` does")
    check_tokens(lm, tokens)
    for layer in after:
        check_layer(lm, layer)

    def mean_states(params: Params) -> jax.Array:
        states = lm.tapped(params, jnp.asarray(tokens), Taps(residual=after))[1].residual
        return jnp.mean(states.astype(jnp.float32), axis=(1, 2))

    base_means = mean_states(base_params)
    direction = mean_states(params) - base_means
    norm = partial(jnp.linalg.norm, axis=1, keepdims=True)
    is_significant = norm(direction) > MIN_NORM * norm(base_means)
    return {"directions": jnp.where(is_significant, direction, 0), "model": params}


def rows(setting: Any, count: int, seed: int = 0, stream: str = "forget") -> Rows:
    """Returns the first rows of a stream as token ids. Raises ValueError for a count below 1."""
    if count < 1:
        raise ValueError(f"rows={count}: give 1 or more")
    batch = setting.stream(stream, count, seed)[0, slice(None)]
    tokens = np.asarray(batch.tokens if isinstance(batch, Packed) else batch)
    return tuple(tuple(row.tolist()) for row in tokens)

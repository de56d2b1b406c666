"""The train step: pure, exact under accumulation, sharded by its arguments and by `ops/`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from undo_jax.checks import whole
from undo_jax.training import optim
from undo_jax.types import LM, Frozen, Key, Loss, Metrics, Packed, Params, Rows
from undo_jax.types import wants_whole_batch as wants_whole

MAX_ROWS = 2**42  # of a stream; a mix of sources counts 2^20 times as many in 64 bits


@dataclass(frozen=True)
class Training:
    """Steps, batch size and optimizer of a training. Step 0 and the last step are always evaluated.

    Raises:
        ValueError: for numbers that are not whole or below 1, for a value that is not an optimizer,
            and for more than 2^42 rows in all.
    """

    steps: int  # updates of the parameters, at most
    batch_size: int  # rows per step, over all devices
    optimizer: optim.Optimizer
    eval_every: int  # steps between two evaluations
    accumulation: int = 1  # parts that a batch is computed in, for less memory

    def __post_init__(self):
        for name in ("steps", "batch_size", "eval_every", "accumulation"):
            value = whole(name, getattr(self, name))
            object.__setattr__(self, name, value)  # NumPy's become Python's, which JSON takes
            if value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        if not isinstance(self.optimizer, optim.Optimizer):
            raise ValueError(f"optimizer={self.optimizer!r}: give AdamW(...)")
        whole("optimizer.warmup", self.optimizer.warmup)
        if self.steps >= 2**31:
            raise ValueError(f"steps={self.steps}: they are counted in 32 bits, up to {2**31 - 1}")
        if self.steps * self.batch_size > MAX_ROWS:
            raise ValueError(
                f"steps={self.steps} of batch_size={self.batch_size} rows: a stream has "
                f"{MAX_ROWS} rows, make them fewer"
            )


class State(NamedTuple):
    """Everything a step changes: fp32 master weights and moments."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    key: Key  # of the random numbers of the loss; most losses draw none
    learning_rate: Float[Array, ""]  # the peak; the schedule is a fraction of it


def rows(packed: Int[Array, "B T+1"] | Packed, mask: Int[Array, "B T"] | None = None) -> Rows:
    """Splits packed rows into inputs, targets and weights.

    Args:
        packed: the rows.
        mask: 1 where the prediction of a token counts, otherwise 0; None: all count.

    Returns:
        The rows. Their weights sum to 1 over the tokens of the whole batch; if no token counts, all
        weights are 0.

    Raises:
        ValueError: for `Packed` rows that have weights, and a mask.
    """
    if not isinstance(packed, Packed):
        packed = Packed(packed)
    tokens, token_weights, segments, states = packed
    if token_weights is not None and mask is not None:
        raise ValueError("these rows have weights and a mask: multiply the weights by the mask")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    segments = None if segments is None else segments[:, :-1]
    if token_weights is not None:
        weights = token_weights[:, 1:].astype(jnp.float32)
        total = jnp.sum(weights)
        return Rows(inputs, targets, weights / jnp.where(total > 0, total, 1), segments, states)
    weights = jnp.ones(targets.shape) if mask is None else mask.astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.sum(weights), 1)
    return Rows(inputs, targets, weights, segments, states)


def initialise(
    params: Params,
    key: Key,
    learning_rate: Float[Array, ""],
    optimizer: optax.GradientTransformation,
    trains: optim.Trains | None = None,
) -> State:
    """Returns the state before the first step, with moments only for what trains.

    Raises:
        ValueError: what `optim.pick` raises for `trains`.
    """
    moments = optimizer.init(optim.pick(trains, params))
    return State(jnp.zeros((), jnp.int32), params, moments, key, learning_rate)


def make_step(
    lm: LM,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ref_lms: Mapping[str, LM],
    accumulation: int = 1,
    trains: optim.Trains | None = None,
) -> Callable[[State, Mapping[str, Params], Mapping[str, Rows]], tuple[State, Metrics]]:
    """Returns the pure step `(state, refs, batch) -> (state, metrics)`, to be jitted by the caller.

    Args:
        lm: the model.
        loss: the loss.
        optimizer: the optax chain at a learning rate of 1, see `optim.build`.
        ref_lms: the frozen models that the loss reads; `refs` are their `LM.rounded` parameters.
        accumulation: parts that a batch is computed in.
        trains: which parameters have a gradient, which is clipped and whose norm is the metric
            `gradient_norm`; other parameters stay bit for bit. None: all train.

    Raises:
        ValueError: for accumulation with a loss of whole batches.
    """
    check_accumulation(loss, accumulation)

    def step(state: State, refs, batch):
        frozen = {name: Frozen(ref_lms[name], params) for name, params in refs.items()}
        key, trained = jax.random.fold_in(state.key, state.step), optim.pick(trains, state.params)

        def objective(trained, part, key):
            return loss(lm, optim.put(trains, state.params, trained), frozen, part, key)

        def gradient(part, key):
            (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
                trained, part, key
            )
            return grads, {"loss": value, **metrics}

        def accumulate(total, part):  # weights sum to 1 over all parts: gradients just add
            return jax.tree.map(jnp.add, total, gradient(*part)), None

        parts = _split(batch, accumulation), jax.random.split(key, accumulation)
        first, rest = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
        grads, metrics = gradient(*first)
        if accumulation > 1:
            (grads, metrics), _ = lax.scan(accumulate, (grads, metrics), rest)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        updates = jax.tree.map(lambda u: state.learning_rate * u, updates)
        params = optim.put(trains, state.params, optax.apply_updates(trained, updates))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def check_accumulation(loss: Loss, accumulation: int) -> None:
    """Raises ValueError if a loss that needs whole batches is accumulated over parts."""
    if accumulation > 1 and wants_whole(loss):
        raise ValueError(
            f"accumulation={accumulation}: this loss is not a sum over rows, and would change "
            "if it were computed in parts: set accumulation=1"
        )


def _split(batch, count: int):
    """[B, ...] -> [count, B/count, ...]; each part has rows of every device."""
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), batch
    )

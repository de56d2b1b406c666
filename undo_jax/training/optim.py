"""Optimizers and their schedules, as values that build an optax chain; which parameters train."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from undo_jax.runtime.sharding import path_name
from undo_jax.types import Params

STACKED = "layers/"  # the paths of leaves [L, ...]


@dataclass(frozen=True)
class Optimizer:
    """Base class of optimizers: a linear warm-up and a decay to `end` × the peak rate.

    Use a subclass, e.g. `AdamW`. To add an optimizer, inherit as a frozen dataclass with the fields
    `weight_decay` and `clip` of `SGD` and a property `update`.

    Raises:
        ValueError: for a number out of its range, an unknown decay or dtype, and a subclass that
            lacks any of these.
    """

    learning_rate: float = 1.0  # the peak; a grid of learning rates multiplies it
    warmup: int = 0  # steps; the first update already has 1/warmup of the peak rate
    decay: Literal["cosine", "linear", "constant"] = "constant"  # of the rate, after the warm-up
    end: float = 0.1  # rate one step after the last ÷ peak rate

    def __post_init__(self):
        lacks = [name for name in ("weight_decay", "clip") if not hasattr(self, name)]
        if type(self).update is Optimizer.update:
            lacks.append("update")
        if lacks:
            raise ValueError(f"{type(self).__name__} lacks {', '.join(lacks)}: see those of SGD")
        self._check(("learning_rate", "epsilon", "clip"), lambda x: x > 0, "must be positive")
        at_least_0 = ("warmup", "end", "weight_decay")
        self._check(at_least_0, lambda x: x >= 0, "must not be negative")
        if self.warmup >= 2**31:
            raise ValueError(f"warmup={self.warmup}: steps are counted in 32 bits: give fewer")
        self._check(
            ("b1", "b2", "momentum", "decay_rate"), lambda x: 0 <= x < 1, "must be in [0, 1)"
        )
        if self.decay not in ("cosine", "linear", "constant"):
            raise ValueError(f"unknown decay {self.decay!r}: cosine, linear or constant")
        moment = getattr(self, "first_moment", "float32")
        if moment not in ("float32", "bfloat16"):
            raise ValueError(f"first_moment={moment!r}: float32 or bfloat16")

    def _check(self, names: Iterable[str], is_valid: Callable[[float], bool], rule: str) -> None:
        for name in names:
            if hasattr(self, name) and not is_valid(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: it {rule}")

    @property
    def update(self) -> optax.GradientTransformation:
        """The optax transform of a gradient, before the learning rate."""
        raise NotImplementedError("an optimizer is e.g. AdamW")

    @property
    def moment_bytes(self) -> int:
        """A lower bound of the bytes of optimizer state per weight."""
        return 0


@dataclass(frozen=True)
class AdamW(Optimizer):
    """AdamW with a global-norm clip, a linear warm-up and a decay to `end` × the peak rate.

    Raises ValueError for a number out of its range and an unknown decay or dtype.
    """

    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment
    epsilon: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.0  # of every parameter, times the rate
    clip: float = 1.0  # largest global norm of a gradient
    first_moment: Literal["float32", "bfloat16"] = "float32"  # the second moment needs fp32

    @property
    def update(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon, mu_dtype=self.first_moment)

    @property
    def moment_bytes(self) -> int:
        return 4 + (2 if self.first_moment == "bfloat16" else 4)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, v ← m v + g. Raises ValueError as `AdamW` does."""

    momentum: float = 0.9  # decay of the sum of gradients
    nesterov: bool = False  # momentum is applied ahead of the step
    weight_decay: float = 0.0  # of every parameter, times the rate
    clip: float = 1.0  # largest global norm of a gradient

    @property
    def update(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov)

    @property
    def moment_bytes(self) -> int:
        return 4


@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion: the sign of a momentum (arXiv 2302.06675). Raises ValueError as `AdamW` does."""

    b1: float = 0.9  # share of the momentum in an update
    b2: float = 0.99  # decay of the momentum
    weight_decay: float = 0.0  # of every parameter, times the rate
    clip: float = 1.0  # largest global norm of a gradient

    @property
    def update(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)

    @property
    def moment_bytes(self) -> int:
        return 4


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor with a rate as AdamW's (arXiv 1804.04235 §6: an update's RMS is at most 1).

    Second moments are factored where both sides of a matrix have 128 elements. Raises ValueError as
    `AdamW` does.
    """

    decay_rate: float = 0.8  # power by which the second moment decays
    weight_decay: float = 0.0  # of every parameter, times the rate
    clip: float = 1.0  # largest global norm of a gradient

    @property
    def update(self) -> optax.GradientTransformation:
        scaled = optax.scale_by_factored_rms(decay_rate=self.decay_rate)
        return optax.chain(scaled, optax.clip_by_block_rms(1.0))


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Returns the learning rate at each of `steps` updates as a fraction of its peak."""
    warmup, rest = config.warmup, max(1, steps - config.warmup)

    def fraction(step):
        progress = jnp.clip((step - warmup) / rest, 0, 1)
        falling = {
            "cosine": config.end + (1 - config.end) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": config.end + (1 - config.end) * (1 - progress),
            "constant": jnp.ones_like(progress),
        }[config.decay]
        return jnp.where(step < warmup, (step + 1) / max(1, warmup), falling)

    return fraction


def build(config: Any, steps: int) -> optax.GradientTransformation:
    """Returns the optax chain at a peak learning rate of 1; the step multiplies by each trial's."""
    factor = schedule(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        config.update,
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_schedule(factor),
        optax.scale(-1.0),
    )


@dataclass(frozen=True)
class Trains:
    """Which parameters train, e.g. `Trains(((r"mlp/down$", range(5, 11)),))`; others are frozen.

    Each part is a regular expression, searched in paths such as `layers/mlp/down`, and the layers
    of those leaves that train, counted from 0; None: all. Frozen parameters have no gradient, no
    moments and no weight decay, and do not count in the gradient's norm or its clip.

    Raises ValueError for no parts, an invalid regular expression and invalid layers.
    """

    parts: tuple[tuple[str, Iterable[int] | None], ...]

    def __post_init__(self):
        if not self.parts or isinstance(self.parts, str):
            raise ValueError(f"trains={self.parts!r}: give parts, each (path, layers or None)")
        for part in self.parts:
            if isinstance(part, str) or len(part) != 2:
                raise ValueError(f"trains: {part!r} is no pair: give (path, layers or None)")
        parts = tuple((path, _layers(path, layers)) for path, layers in self.parts)
        object.__setattr__(self, "parts", parts)


def _layers(path: str, layers: Iterable[int] | None) -> tuple[int, ...] | None:
    """Returns layers as a sorted tuple. Raises ValueError for an invalid expression or layers."""
    try:
        re.compile(path)
    except (re.error, TypeError) as error:
        raise ValueError(f"trains: {path!r} is no regular expression ({error})") from error
    if layers is None:
        return None
    numbers = tuple(sorted({*layers})) if isinstance(layers, Iterable) else ()
    if not numbers or not all(isinstance(n, int | np.integer) and n >= 0 for n in numbers):
        raise ValueError(f"trains: layers={layers!r} of {path!r}: give e.g. range(5, 11), or None")
    return tuple(map(int, numbers))


def pick(trains: Trains | None, params: Params) -> Params:
    """Returns the parameters that train.

    Args:
        trains: which parameters train; None: all.
        params: the parameters.

    Returns:
        The same tree: of a leaf [L, ...] its n layers that train, [n, ...]; None for a leaf that
        does not train.

    Raises:
        ValueError: for an expression that matches no leaf and layers that a leaf does not have.
    """
    if trains is None:
        return params
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, _ in trains.parts:
        if not any(re.search(path, name) for name in names):
            raise ValueError(f"trains: {path!r} finds none of {', '.join(names)}")

    def pick_leaf(path, leaf):
        chosen = _chosen(trains, path_name(path), leaf.shape)
        return leaf[np.array(chosen)] if isinstance(chosen, tuple) else leaf if chosen else None

    return jax.tree_util.tree_map_with_path(pick_leaf, params)


def share(trains: Trains, params: Params) -> float:
    """Returns the share of all weights that `trains` picks, from 0 to 1. Raises what `pick` does.

    `params` may be shapes.
    """
    picked = jax.eval_shape(lambda tree: pick(trains, tree), params)
    trained, total = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (picked, params))
    return trained / total


def put(trains: Trains | None, params: Params, picked: Params) -> Params:
    """Inverts `pick`: returns `params` with the values of `picked` for what trains."""
    if trains is None:
        return picked

    def put_leaf(path, leaf, new):
        chosen = _chosen(trains, path_name(path), leaf.shape)
        if isinstance(chosen, tuple):
            at = jnp.asarray(leaf).at[np.array(chosen)]
            return at.set(new, indices_are_sorted=True, unique_indices=True)
        return new if chosen else leaf

    return jax.tree_util.tree_map_with_path(put_leaf, params, picked, is_leaf=lambda x: x is None)


def _chosen(trains: Trains, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | bool:
    """Returns the layers of a leaf that train, or whether all of it does."""
    matches = [layers for path, layers in trains.parts if re.search(path, name)]
    if not matches or any(layers is None for layers in matches):
        return bool(matches)
    layers: tuple[Any, ...] = tuple(sorted({n for layers in matches for n in layers or ()}))
    if not name.startswith(STACKED):
        raise ValueError(f"trains: {name} has no layers, but {layers} are given: give None")
    if layers[-1] >= shape[0]:
        raise ValueError(f"trains: {name} has layers 0 to {shape[0] - 1}, not {layers[-1]}")
    return layers

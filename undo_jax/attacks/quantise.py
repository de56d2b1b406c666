"""Quantisation, which may bring back what small updates hid (arXiv 2410.16454), then relearning."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from undo_jax.attack import Attack, name_relearning
from undo_jax.runtime.sharding import path_name
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Params

Rule = Literal["nf4", "fp4", "int8", "int4"]
NF4 = (  # levels of QLoRA (arXiv 2305.14314 appendix E)
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_HALF = (0.0, 0.00520833, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0)
FP4 = (*(-level for level in _HALF[:0:-1]), *_HALF)  # as bitsandbytes
LEVELS = {"nf4": NF4, "fp4": FP4}
LARGEST = {"int8": 127, "int4": 7}  # of the whole numbers, which are symmetric
GROUPS: dict[str, int | None] = {"nf4": 64, "fp4": 64, "int8": None, "int4": 128}


def quantise(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    rule: Rule = "nf4",
    group: int | None = None,
    stream: str = "forget",
) -> Attack:
    """Round the layers' matrices; then, with a `training`, relearn from there in full precision.

    `nf4` and `fp4` are those of bitsandbytes: the nearest of 16 levels, times the largest magnitude
    in a block of 64 weights along the inputs, then the outputs. `int8` and `int4` are the nearest
    integer times a scale, the largest magnitude divided by 127 or 7: of each output (int8), or of
    each 128 inputs of an output (int4; the last group may be shorter). `group` is another size of
    groups. Embeddings, head and vectors are not rounded.

    Raises ValueError for an unknown rule and a group that is not positive.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule={rule!r}: choose one of {', '.join(get_args(Rule))}")
    if group is not None and not (type(group) is int and group > 0):
        raise ValueError(f"group={group!r}: give a whole number of weights above 0")
    return Attack(
        name_relearning(f"quantise-{rule}", training, stream, "-relearn"),
        training,
        learning_rates,
        stream=stream,
        prepare=partial(quantised, rule=rule, group=group or GROUPS[rule]),
        keep_at=keep_at,
    )


def quantised(lm: LM, params: Params, key: Key, *, rule: Rule, group: int | None) -> Params:
    """Returns parameters with the layers' matrices rounded by a rule; the key is not used."""

    def of_leaf(path, w):
        if not path_name(path).startswith("layers/") or w.ndim != 3:
            return w
        of_outputs = jnp.swapaxes(w, 1, 2)  # [L, O, I], as other libraries store it
        if rule in LEVELS:
            flat = of_outputs.reshape(len(w), -1)
            rounded = _to_levels(flat, LEVELS[rule], group or flat.shape[1])
        else:
            rounded = _to_whole(of_outputs, LARGEST[rule], group or of_outputs.shape[2])
        return jnp.swapaxes(rounded.reshape(of_outputs.shape), 1, 2)

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _grouped(w: Float[Array, "*n I"], size: int) -> Float[Array, "*n G g"]:
    """Splits the last axis into groups of a size, at most its own; the last is padded with 0."""
    size = min(size, w.shape[-1])
    padded = jnp.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, -w.shape[-1] % size)])
    return padded.reshape(*w.shape[:-1], -1, size)


def _to_levels(
    w: Float[Array, "*n I"], levels: tuple[float, ...], size: int
) -> Float[Array, "*n I"]:
    """Rounds w / max|w| of each group to the nearest level, of two as near to the lower."""
    ascending = jnp.asarray(levels, jnp.float32)
    groups = _grouped(w, size)
    scale = jnp.max(jnp.abs(groups), axis=-1, keepdims=True)
    relative = _divided(groups, jnp.where(scale > 0, scale, 1))
    midpoints = (ascending[1:] + ascending[:-1]) / 2
    rounded = ascending[jnp.searchsorted(midpoints, relative)] * scale
    return rounded.reshape(*w.shape[:-1], -1)[..., : w.shape[-1]]


def _to_whole(w: Float[Array, "*n I"], largest: int, size: int) -> Float[Array, "*n I"]:
    """Rounds w / scale of each group to the nearest integer, ties to even, scale = max|w| / n."""
    groups = _grouped(w, size)
    magnitude = jnp.max(jnp.abs(groups), axis=-1, keepdims=True)
    scale = _divided(magnitude, jnp.float32(largest))
    integers = jnp.round(_divided(groups, jnp.where(scale > 0, scale, 1)))
    rounded = jnp.clip(integers, -largest, largest) * scale
    return rounded.reshape(*w.shape[:-1], -1)[..., : w.shape[-1]]


def _divided(x: Array, y: Array) -> Array:
    """Returns x / y, rounded once: for a broadcast y XLA would multiply by 1/y."""
    return x / lax.optimization_barrier(jnp.broadcast_to(y, x.shape))

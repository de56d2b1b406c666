"""Explicit collectives, for jitted functions, on the mesh in use."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec as P

from undo_jax.runtime.mesh import AXES, auto_axes, split_axes
from undo_jax.runtime.sharding import restrict_spec


def on_devices(f: Callable, in_specs: Any, out_specs: Any, axes: Sequence[str] = AXES) -> Callable:
    """Lift `f`, of a device's shards, to whole arrays by `shard_map`; `f` calls the collectives.

    Arrays are sharded over those of `axes` that have several devices: inside, `several` gives them.
    """
    free = auto_axes()
    split = free & set(split_axes(*axes))
    if not split:
        return f
    if split == set(split_axes(*free)):  # XLA for CPU sums bf16 only where all axes are split
        split = free
    in_specs, out_specs = (
        jax.tree.map(partial(restrict_spec, axes=split), specs, is_leaf=lambda x: isinstance(x, P))
        for specs in (in_specs, out_specs)
    )
    return jax.shard_map(
        f, in_specs=in_specs, out_specs=out_specs, axis_names=split, check_vma=False
    )


def shard_offset(part: int, *axes: str) -> Any:
    """The index of the first element of a device's shard, of size `part`, over these mesh axes."""
    there = split_axes(*axes)
    return part * lax.axis_index(there) if there else 0


def all_gather(x: jax.Array, *axis_names: str, axis: int) -> jax.Array:
    """All-gather over mesh axes: the devices' shards, concatenated along an array axis."""
    there = split_axes(*axis_names)
    return lax.all_gather(x, there, axis=axis, tiled=True) if there else x


def reduce_scatter(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """Reduce-scatter over a mesh axis: a device's shard, along an array axis, of the sum.

    The shards are first stacked along a new leading axis: libtpu aborts where shards of the last
    axis are smaller than the TPU's lanes.
    """
    return lax.psum_scatter(_stacked(x, axis_name, axis), axis_name) if split_axes(axis_name) else x


def all_to_all_sum(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """What `reduce_scatter` gives, in fp32, by an all-to-all of the shards as they are and a sum.

    So bf16 travels as bf16 and no partial sum is rounded.
    """
    if not split_axes(axis_name):
        return x
    shards = lax.all_to_all(_stacked(x, axis_name, axis), axis_name, 0, 0)
    return jnp.sum(shards.astype(jnp.float32), 0)


def _stacked(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """The devices' shards along an array axis, along a new leading axis."""
    shape = *x.shape[:axis], lax.axis_size(axis_name), -1, *x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def gather_weight(w: jax.Array, dtype: jnp.dtype, spec: P, exchanged: bool = False) -> jax.Array:
    """A weight of this spec, cast, then all-gathered over `fsdp`, inside a `shard_map` over rows.

    Its gradient is summed in fp32: by a reduce-scatter of fp32, or exchanged in this dtype.
    """
    if not split_axes("fsdp"):
        return w.astype(dtype)
    axis = spec.index("fsdp")
    # each device gathers its shard along `tensor`: XLA would gather the whole on all of them
    whole = on_devices(lambda w: all_gather(w, "fsdp", axis=axis), spec, spec, ("tensor",))
    summed = partial(all_to_all_sum if exchanged else reduce_scatter, axis_name="fsdp", axis=axis)
    split = on_devices(summed, spec, spec, ("tensor",))
    sent = dtype if exchanged else jnp.float32
    return linear_call(
        lambda _, w: whole(w.astype(dtype)),
        lambda _, gradient: split(gradient.astype(sent)).astype(w.dtype),
        (),
        w,
    )

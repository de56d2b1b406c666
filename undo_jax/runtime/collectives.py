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
    """Lifts `f`, of a device's shards, to whole arrays by `shard_map`; `f` calls the collectives.

    Arrays are sharded over those of `axes` that have several devices: inside `f`, `split_axes`
    returns them.
    """
    free = auto_axes()
    manual = free & set(split_axes(*axes))
    if not manual:
        return f
    if manual == set(split_axes(*free)):  # XLA for CPU sums bf16 only where all axes are manual
        manual = free
    in_specs, out_specs = (
        jax.tree.map(partial(restrict_spec, axes=manual), specs, is_leaf=lambda x: isinstance(x, P))
        for specs in (in_specs, out_specs)
    )
    return jax.shard_map(
        f, in_specs=in_specs, out_specs=out_specs, axis_names=manual, check_vma=False
    )


def shard_offset(size: int, *axis_names: str) -> Any:
    """Returns the index of the first element of a device's shard, of `size`, over mesh axes."""
    axes = split_axes(*axis_names)
    return size * lax.axis_index(axes) if axes else 0


def all_gather(x: jax.Array, *axis_names: str, axis: int) -> jax.Array:
    """All-gathers over mesh axes: concatenates the devices' shards along an array axis."""
    axes = split_axes(*axis_names)
    return lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


def reduce_scatter(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """Reduce-scatters over a mesh axis: returns a device's shard, along `axis`, of the sum.

    The shards are first stacked along a new leading axis: libtpu aborts where shards of the last
    axis are smaller than the TPU's lanes.
    """
    if not split_axes(axis_name):
        return x
    return lax.psum_scatter(_stack_shards(x, axis_name, axis), axis_name)


def all_to_all_sum(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """Returns what `reduce_scatter` does, in fp32, by an all-to-all of the shards and a sum.

    So bf16 travels as bf16 and no partial sum is rounded.
    """
    if not split_axes(axis_name):
        return x
    shards = lax.all_to_all(_stack_shards(x, axis_name, axis), axis_name, 0, 0)
    return jnp.sum(shards.astype(jnp.float32), 0)


def _stack_shards(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """Stacks the devices' shards along an array axis, along a new leading axis."""
    shape = *x.shape[:axis], lax.axis_size(axis_name), -1, *x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def gather_weight(w: jax.Array, dtype: jnp.dtype, spec: P, exchanged: bool = False) -> jax.Array:
    """Casts a weight, then all-gathers it over `fsdp`, inside a `shard_map` over rows.

    Args:
        w: this device's shard of the weight.
        dtype: the dtype of the gathered weight.
        spec: the spec of the weight; its `fsdp` axis is gathered.
        exchanged: how the gradient is summed, in fp32 either way: False, by a reduce-scatter of
            fp32; True, after an all-to-all in `dtype`.
    """
    if not split_axes("fsdp"):
        return w.astype(dtype)
    axis = spec.index("fsdp")
    # each device gathers its shard along `tensor`: XLA would gather the whole on all of them
    gather = on_devices(lambda w: all_gather(w, "fsdp", axis=axis), spec, spec, ("tensor",))
    reduce = partial(all_to_all_sum if exchanged else reduce_scatter, axis_name="fsdp", axis=axis)
    scatter = on_devices(reduce, spec, spec, ("tensor",))
    gradient_dtype = dtype if exchanged else jnp.float32
    return linear_call(
        lambda _, w: gather(w.astype(dtype)),
        lambda _, gradient: scatter(gradient.astype(gradient_dtype)).astype(w.dtype),
        (),
        w,
    )

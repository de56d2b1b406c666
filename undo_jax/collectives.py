"""What devices exchange: for functions that are jitted, on the mesh in use."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec as P

from undo_jax.mesh import AXES, free_axes, several
from undo_jax.sharding import restrict


def on_devices(f: Callable, in_specs: Any, out_specs: Any, axes: Sequence[str] = AXES) -> Callable:
    """Lift `f` of a device's parts of arrays to whole arrays; `f` says what the devices exchange.

    It works on parts along those of `axes` that have several devices: `several` tells inside.
    """
    free = free_axes()
    split = free & set(several(*axes))
    if not split:
        return f
    if split == set(several(*free)):  # XLA for CPU sums bf16 only where all axes are split
        split = free
    in_specs, out_specs = (
        jax.tree.map(partial(restrict, axes=split), specs, is_leaf=lambda x: isinstance(x, P))
        for specs in (in_specs, out_specs)
    )
    return jax.shard_map(
        f, in_specs=in_specs, out_specs=out_specs, axis_names=split, check_vma=False
    )


def first_of(part: int, *axes: str) -> Any:
    """Where a device's part, of that size, begins along what these mesh axes split."""
    there = several(*axes)
    return part * lax.axis_index(there) if there else 0


def gather(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """The parts of all devices along a mesh axis, side by side along an array axis."""
    there = several(axis_name)
    return lax.all_gather(x, there, axis=axis, tiled=True) if there else x


def scatter(x: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """A device's part, along an array axis, of the sum over a mesh axis.

    The parts are laid side by side along a new first axis before they are exchanged: one of the
    last axis may be smaller than the TPU's lanes.
    """
    there = several(axis_name)
    if not there:
        return x
    shape = *x.shape[:axis], lax.axis_size(axis_name), -1, *x.shape[axis + 1 :]
    return lax.psum_scatter(jnp.moveaxis(x.reshape(shape), axis, 0), axis_name)


def gather_weight(w: jax.Array, dtype: jnp.dtype, spec: P) -> jax.Array:
    """A weight of this spec, cast and then gathered over `fsdp`, where rows are split already.

    Its gradient is summed and scattered in fp32.
    """
    if not several("fsdp"):
        return w.astype(dtype)
    axis = spec.index("fsdp")
    # by each device for its part along `tensor`: XLA would do the same work on all of them
    whole = on_devices(partial(gather, axis_name="fsdp", axis=axis), spec, spec, ("tensor",))
    split = on_devices(partial(scatter, axis_name="fsdp", axis=axis), spec, spec, ("tensor",))
    return linear_call(
        lambda _, w: whole(w.astype(dtype)),
        lambda _, gradient: split(gradient.astype(jnp.float32)).astype(w.dtype),
        (),
        w,
    )

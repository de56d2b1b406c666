"""The device mesh, and one table of rules from parameter paths to shardings."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.types import LM, Rules, shapes

BATCH = ("data", "fsdp")  # the axes a batch is split over
ROWS: Rules = (("", P(BATCH)),)


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one axis may be -1, for all that are left.

    `sweep` holds different models, `data` different rows, `fsdp` different rows and a slice of each
    parameter, `tensor` a slice of each matrix product.
    """

    sweep: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


AXES = tuple(MeshShape.__annotations__)


def parse_mesh(text: str) -> MeshShape:
    """The shape that e.g. `data=4,fsdp=2` says; axes it does not name are 1.

    Raises ValueError for an unknown axis, for one that stands twice and for a size that is none.
    """
    sizes = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in sizes:
            wrong = "axis twice:" if name in sizes else "unknown axis"
            raise ValueError(f"mesh {text}: {wrong} {name!r}: give each of {', '.join(AXES)} once")
        if not re.fullmatch(r"-?\d+", size):
            raise ValueError(f"mesh {text}: {name}={size} is no number: give devices, or -1")
        sizes[name] = int(size)
    return MeshShape(**(dict.fromkeys(AXES, 1) | sizes))


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, those of one slice side by side: between slices the network is slow.

    Raises ValueError where the shape does not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, slices = axis_sizes(shape, len(devices)), {_slice(device) for device in devices}
    split = {"allow_split_physical_axes": True}
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, **split)
    else:
        within, across = over_slices(sizes, len(slices))
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, **split)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(sizes))


def axis_sizes(shape: MeshShape, count: int) -> tuple[int, ...]:
    """The sizes of all axes on `count` devices. Raises ValueError where they do not fit."""
    sizes, text = list(astuple(shape)), _text(asdict(shape))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {text}: sizes are positive, and at most one may be -1")
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        raise ValueError(
            f"mesh {text} does not fit {count} devices: "
            "make the product of its axes equal to that, or set one axis to -1"
        )
    return tuple(sizes)


def over_slices(sizes: Sequence[int], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes within a slice and across `count` slices, which lie along `sweep` or else `data`.

    Members meet never, rows once a step; the other axes meet in every layer. Raises ValueError
    where neither axis divides.
    """
    for axis in (AXES.index("sweep"), AXES.index("data")):
        if sizes[axis] % count == 0:
            across = tuple(count if i == axis else 1 for i in range(len(sizes)))
            return tuple(n // c for n, c in zip(sizes, across, strict=True)), across
    raise ValueError(
        f"mesh {_text(dict(zip(AXES, sizes, strict=True)))} does not split over {count} slices: "
        f"make sweep or data a multiple of {count}"
    )


def _slice(device: Any) -> int:
    """Devices of one slice are joined by a fast network; most platforms have one slice."""
    return getattr(device, "slice_index", None) or 0


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def path_name(path: Any) -> str:
    """A tree path as text, e.g. `layers/mlp/down`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_of(path: Any, ndim: int, rules: Rules) -> P:
    """The spec of a leaf: by the first rule whose expression is found in its path.

    Scalars are replicated. Raises ValueError where no rule matches.
    """
    name = path_name(path)
    spec = P() if not ndim else next((s for r, s in rules if re.search(r, name)), None)
    if spec is None:
        raise ValueError(f"no sharding rule matches {name!r}: add one to the model's table")
    return spec


def specs(tree: Any, rules: Rules) -> Any:
    """The specs of all leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: spec_of(path, leaf.ndim, rules), tree
    )


def shardings(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Shardings for a tree of arrays whose leaves begin with the axes `lead`.

    Raises ValueError where no rule matches or a dimension is not divisible.
    """

    def of_leaf(path, leaf):
        shape = leaf.shape[len(lead) :]
        spec = spec_of(path, len(shape), rules)
        for size, axes in zip(shape, spec, strict=False):
            axes = axes if isinstance(axes, tuple) else (axes,)
            parts = {axis: mesh.shape[axis] for axis in axes if axis is not None}
            if size % math.prod(parts.values()):
                split = " × ".join(f"{axis}={devices}" for axis, devices in parts.items())
                raise ValueError(
                    f"{path_name(path)} has a dimension of {size}, which the mesh axis {split} "
                    f"does not divide: choose a smaller {' or '.join(parts)}"
                )
        return NamedSharding(mesh, P(*lead, *spec))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def placed(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Shapes with their shardings. Raises what `shardings` does."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        shardings(tree, rules, mesh, lead),
    )


def placement(lm: LM, mesh: Mesh) -> Any:
    """Where each parameter of a model lies. Raises ValueError where the mesh does not fit it."""
    return shardings(shapes(lm), lm.rules, mesh)


def own_rows(mesh: Mesh, count: int) -> list[slice]:
    """Which of a batch's `count` rows the devices of this process hold, as few ascending slices."""
    held = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((count,)).values()
    runs: list[slice] = []
    for start, stop, _ in sorted({index[0].indices(count) for index in held if index is not None}):
        if runs and runs[-1].stop == start:
            start = runs.pop().start
        runs.append(slice(start, stop))
    return runs


def assemble(mesh: Mesh, count: int, read: Callable[[slice], np.ndarray]) -> jax.Array:
    """A batch [groups, count, ...] over all devices; a process reads its own rows, each once."""
    parts = [(run, read(run)) for run in own_rows(mesh, count)]

    def piece(index: Any) -> np.ndarray:
        start, stop, _ = index[1].indices(count)
        run, rows = next((run, rows) for run, rows in parts if run.start <= start < run.stop)
        return rows[:, start - run.start : stop - run.start]

    shape = parts[0][1].shape
    sharding = NamedSharding(mesh, P(None, BATCH))
    return jax.make_array_from_callback((shape[0], count, *shape[2:]), sharding, piece)


def parts(*axes: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Into how many parts these axes split an array; by default of the current mesh, if any."""
    shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises ValueError where the mesh does not divide a batch of `batch_size` rows."""
    shards = parts(*BATCH, mesh=mesh)
    if batch_size % (shards * accumulation):
        raise ValueError(
            f"a batch of {batch_size} rows does not divide into data×fsdp={shards} shards of "
            f"{accumulation} accumulation steps: make it a multiple of {shards * accumulation}"
        )


# ------------------------------------------------------- inside a jitted function: the current mesh


def place(tree: Any, rules: Rules) -> Any:
    """The tree, sharded as the rules say, along the axes that no `shard_map` has split already."""
    mesh, free = jax.sharding.get_abstract_mesh(), _free()
    if not free:
        return tree
    kept = lambda place: NamedSharding(mesh, _keep(place.spec, free))  # noqa: E731
    return lax.with_sharding_constraint(tree, jax.tree.map(kept, shardings(tree, rules, mesh)))


def _free() -> set[str]:
    """The axes of the current mesh along which XLA may split arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind != AxisType.Manual}


def pad_rows(tree: Any) -> Any:
    """Leaves [B, ...] with as many rows of zeros added as a batch lacks to divide the mesh."""

    def pad(x):
        return jnp.pad(x, [(0, -x.shape[0] % parts(*BATCH))] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(pad, tree)


def on_devices(f: Callable, in_specs: Any, out_specs: Any, axes: Sequence[str] = AXES) -> Callable:
    """Lift `f` of a device's parts of arrays to whole arrays; `f` says what the devices exchange.

    It works on parts along those of `axes` that have several devices: `several` tells inside.
    """
    free = _free()
    split = free & set(several(*axes))
    if not split:
        return f
    if split == set(several(*free)):  # XLA for CPU sums bf16 only where all axes are split
        split = free
    in_specs, out_specs = (
        jax.tree.map(partial(_keep, axes=split), specs, is_leaf=lambda x: isinstance(x, P))
        for specs in (in_specs, out_specs)
    )
    return jax.shard_map(
        f, in_specs=in_specs, out_specs=out_specs, axis_names=split, check_vma=False
    )


def _keep(spec: P, axes: Collection[str]) -> P:
    """A spec as far as it speaks of these axes."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec)
    return P(*(tuple(axis for axis in part if axis in axes) or None for part in parts))


def several(*axes: str) -> tuple[str, ...]:
    """Those of the axes along which there are several devices."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in axes if shape.get(axis, 1) > 1)


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

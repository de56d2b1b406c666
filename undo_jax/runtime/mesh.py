"""The device mesh: its axes and shape, and queries of the current mesh."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

BATCH = ("data", "fsdp")  # the axes a batch is split over


@dataclass(frozen=True)
class MeshShape:
    """Number of devices along each axis; one axis may be -1, for all that are left.

    Args:
        sweep: devices along this axis hold different models.
        data: devices along this axis hold different rows of a batch.
        fsdp: devices along this axis hold different rows, and a shard of each parameter.
        tensor: devices along this axis hold a shard of each matrix product.
    """

    sweep: int = 1  # devices that hold different models
    data: int = -1  # devices that hold different rows
    fsdp: int = 1  # devices that hold different rows, and shards of parameters
    tensor: int = 1  # devices that hold shards of matrix products


AXES = tuple(MeshShape.__annotations__)


def parse_mesh(text: str) -> MeshShape:
    """Parses a text such as `data=4,fsdp=2`; axes that it does not name have size 1.

    Raises:
        ValueError: for an unknown axis, a repeated one, and a size that is not a number.
    """
    sizes = {}
    for entry in text.split(","):
        name, _, size = (word.strip() for word in entry.partition("="))
        if name not in AXES or name in sizes:
            problem = "axis twice:" if name in sizes else "unknown axis"
            names = ", ".join(AXES)
            raise ValueError(f"mesh {text}: {problem} {name!r}: give each of {names} once")
        if not re.fullmatch(r"-?\d+", size):
            raise ValueError(
                f"mesh {text}: {name}={size} is not a number: give a number of devices, or -1"
            )
        sizes[name] = int(size)
    return MeshShape(**(dict.fromkeys(AXES, 1) | sizes))


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh over devices; only `sweep` or `data` crosses the network between slices.

    Args:
        shape: the number of devices along each axis.
        devices: the devices; None takes all devices of all processes.

    Returns:
        A mesh with the axes `sweep`, `data`, `fsdp` and `tensor`.

    Raises:
        ValueError: if the shape does not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, slices = axis_sizes(shape, len(devices)), {_slice(device) for device in devices}
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        within, across = split_over_slices(sizes, len(slices))
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(sizes))


def make_mesh_without_sweep(shape: MeshShape) -> Mesh:
    """Returns a mesh for one model: of the shape if it fits, else of all devices along `data`."""
    try:
        return make_mesh(replace(shape, sweep=1, data=-1))
    except ValueError:  # a shape for another number of devices
        return make_mesh(MeshShape())


def axis_sizes(shape: MeshShape, count: int) -> tuple[int, ...]:
    """Returns the sizes of all axes on `count` devices. Raises ValueError if they do not fit."""
    sizes, text = list(astuple(shape)), _text(asdict(shape))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {text}: sizes are positive, and at most one may be -1")
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        remedy = (
            f"the product {fixed} of its other axes must divide {count}, e.g. --mesh data=-1"
            if -1 in sizes
            else "make the product of its axes equal to that, or set one axis to -1"
        )
        raise ValueError(f"mesh {text} does not fit {count} devices: {remedy}")
    return tuple(sizes)


def split_over_slices(sizes: Sequence[int], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns axis sizes within a slice, and across `count` slices, along `sweep` or else `data`.

    `sweep` never communicates, `data` all-reduces gradients once a step; `fsdp` and `tensor`
    communicate in every layer. Raises ValueError if `count` divides neither of the first two.
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
    """Returns the slice of a device: a fast network joins the devices of a slice."""
    return getattr(device, "slice_index", None) or 0


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises ValueError if the mesh does not divide a batch of `batch_size` rows."""
    shards = shard_count(*BATCH, mesh=mesh)
    if batch_size % (shards * accumulation):
        raise ValueError(
            f"a batch of {batch_size} rows does not divide into data×fsdp={shards} shards of "
            f"{accumulation} accumulation steps: make it a multiple of {shards * accumulation}"
        )


def shard_count(*axes: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Returns how many shards these axes split an array into; by default of the current mesh."""
    shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def split_axes(*axes: str) -> tuple[str, ...]:
    """Returns those of these axes of the current mesh that have several devices."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in axes if shape.get(axis, 1) > 1)


def auto_axes() -> set[str]:
    """Returns the axes of the current mesh that are not manual: XLA may partition along them."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind != AxisType.Manual}


def device_kind() -> str:
    """Returns the kind of the current mesh's devices, or of this machine's, e.g. "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return device.device_kind

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

    Along `sweep`, devices hold different models; along `data`, different rows of a batch; along
    `fsdp`, different rows and a shard of each parameter; along `tensor`, a shard of each matrix
    product.
    """

    sweep: int = 1  # devices that hold different models
    data: int = -1  # devices that hold different rows
    fsdp: int = 1  # devices that hold different rows, and shards of parameters
    tensor: int = 1  # devices that hold shards of matrix products


AXES = tuple(MeshShape.__annotations__)


def parse_mesh(text: str) -> MeshShape:
    """The shape of a text such as `data=4,fsdp=2`; axes that it does not name are 1.

    Raises ValueError for an unknown axis, a repeated one, and a size that is not a number.
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
    """A mesh over all devices; only `sweep` or `data` crosses the slow network between slices.

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


def make_mesh_without_sweep(shape: MeshShape) -> Mesh:
    """Returns a mesh for one model: of the shape if it fits, else of all devices along `data`."""
    try:
        return make_mesh(replace(shape, sweep=1, data=-1))
    except ValueError:  # a shape for another number of devices
        return make_mesh(MeshShape())


def axis_sizes(shape: MeshShape, count: int) -> tuple[int, ...]:
    """The sizes of all axes on `count` devices. Raises ValueError where they do not fit."""
    sizes, text = list(astuple(shape)), _text(asdict(shape))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {text}: sizes are positive, and at most one may be -1")
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        remedy = (
            f"its other axes make {fixed}, give some that divide {count}, e.g. --mesh data=-1"
            if -1 in sizes
            else "make the product of its axes equal to that, or set one axis to -1"
        )
        raise ValueError(f"mesh {text} does not fit {count} devices: {remedy}")
    return tuple(sizes)


def over_slices(sizes: Sequence[int], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axis sizes within a slice, and across `count` slices: these lie along `sweep`, else `data`.

    `sweep` never communicates, `data` all-reduces gradients once a step; `fsdp` and `tensor`
    communicate in every layer. Raises ValueError where `count` divides neither of the first two.
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
    """The slice of a device: a fast network joins its devices. Most platforms have one slice."""
    return getattr(device, "slice_index", None) or 0


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises ValueError where the mesh does not divide a batch of `batch_size` rows."""
    shards = parts(*BATCH, mesh=mesh)
    if batch_size % (shards * accumulation):
        raise ValueError(
            f"a batch of {batch_size} rows does not divide into data×fsdp={shards} shards of "
            f"{accumulation} accumulation steps: make it a multiple of {shards * accumulation}"
        )


def parts(*axes: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Into how many shards these axes split an array; `mesh` None is the current one, if any."""
    shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def several(*axes: str) -> tuple[str, ...]:
    """Those of these axes of the current mesh that have several devices."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in axes if shape.get(axis, 1) > 1)


def free_axes() -> set[str]:
    """The axes of the current mesh that are not manual: XLA may partition along them."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind != AxisType.Manual}


def device_kind() -> str:
    """The kind of the current mesh's devices, or of this machine's, e.g. "cpu" or "TPU v5 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return device.device_kind

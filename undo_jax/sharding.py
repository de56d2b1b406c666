"""The device mesh, and one table of rules from parameter paths to shardings."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.types import Rules

BATCH = ("data", "fsdp")  # the axes a batch is split over


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


def parse_mesh(text: str) -> MeshShape:
    """The shape that e.g. `data=4,fsdp=2` says; axes it does not name are 1.

    Raises ValueError for an unknown axis, for one that stands twice and for a size that is none.
    """
    names, sizes = tuple(MeshShape.__annotations__), {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in names or name in sizes:
            wrong = "axis twice:" if name in sizes else "unknown axis"
            raise ValueError(f"mesh {text}: {wrong} {name!r}: give each of {', '.join(names)} once")
        if not re.fullmatch(r"-?\d+", size):
            raise ValueError(f"mesh {text}: {name}={size} is no number: give devices, or -1")
        sizes[name] = int(size)
    return MeshShape(**(dict.fromkeys(names, 1) | sizes))


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, those of one slice side by side: between slices the network is slow.

    Raises ValueError where the shape does not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, slices = axis_sizes(shape, len(devices)), {_slice(device) for device in devices}
    names, types = tuple(MeshShape.__annotations__), (AxisType.Auto,) * len(sizes)
    if len(slices) == 1:
        return jax.make_mesh(sizes, names, axis_types=types, devices=devices)
    within, across = over_slices(sizes, len(slices))
    grid = mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, names, axis_types=types)


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
    names = tuple(MeshShape.__annotations__)
    for axis in (names.index("sweep"), names.index("data")):
        if sizes[axis] % count == 0:
            across = tuple(count if i == axis else 1 for i in range(len(sizes)))
            return tuple(n // c for n, c in zip(sizes, across, strict=True)), across
    raise ValueError(
        f"mesh {_text(dict(zip(names, sizes, strict=True)))} does not split over {count} slices: "
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


def shardings(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Shardings for a tree of arrays whose leaves begin with the axes `lead`.

    Scalars are replicated; every other leaf takes the first rule whose expression is found in its
    path. Raises ValueError where no rule matches or a dimension is not divisible.
    """

    def of_leaf(path, leaf):
        name, shape = path_name(path), leaf.shape[len(lead) :]
        spec = P() if not shape else next((s for r, s in rules if re.search(r, name)), None)
        if spec is None:
            raise ValueError(f"no sharding rule matches {name!r}: add one to the model's table")
        for size, axes in zip(shape, spec, strict=False):
            axes = axes if isinstance(axes, tuple) else (axes,)
            parts = {axis: mesh.shape[axis] for axis in axes if axis is not None}
            if size % math.prod(parts.values()):
                split = " × ".join(f"{axis}={devices}" for axis, devices in parts.items())
                raise ValueError(
                    f"{name} has a dimension of {size}, which the mesh axis {split} does not "
                    f"divide: choose a smaller {' or '.join(parts)}"
                )
        return NamedSharding(mesh, P(*lead, *spec))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


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


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises ValueError where the mesh does not divide a batch of `batch_size` rows."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    if batch_size % (shards * accumulation):
        raise ValueError(
            f"a batch of {batch_size} rows does not divide into data×fsdp={shards} shards of "
            f"{accumulation} accumulation steps: make it a multiple of {shards * accumulation}"
        )


def check_sweep(mesh: Mesh) -> None:
    """Raises ValueError for a sweep whose program XLA's partitioner aborts on (jax 0.10, 0.12)."""
    shape = mesh.shape
    if shape["sweep"] > 1 and shape["tensor"] > 1 and shape["data"] * shape["fsdp"] > 1:
        raise ValueError(
            f"mesh {_text(shape)}: XLA cannot compile a sweep that is split over tensor and over "
            "data or fsdp too: set sweep=1, or tensor=1, or data=1 and fsdp=1"
        )

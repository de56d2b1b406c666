"""The device mesh, and one table of rules from parameter paths to shardings."""

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import jax
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
    """A mesh over all devices. Raises ValueError where the shape does not fit their number."""
    devices = jax.devices() if devices is None else devices
    sizes, names = list(astuple(shape)), tuple(MeshShape.__annotations__)
    text = ", ".join(f"{n}={s}" for n, s in zip(names, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {text}: sizes are positive, and at most one may be -1")
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {text} does not fit {len(devices)} devices: "
            "make the product of its axes equal to that, or set one axis to -1"
        )
    types = (AxisType.Auto,) * len(names)
    return jax.make_mesh(tuple(sizes), names, axis_types=types, devices=devices)


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
        text = ", ".join(f"{name}={size}" for name, size in shape.items())
        raise ValueError(
            f"mesh {text}: XLA cannot compile a sweep that is split over tensor and over data or "
            "fsdp too: set sweep=1, or tensor=1, or data=1 and fsdp=1"
        )

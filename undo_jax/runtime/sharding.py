"""Shardings of parameters, by rules from paths to specs; and of batches' rows."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.runtime.mesh import BATCH, auto_axes, shard_count
from undo_jax.types import LM, Rules, shapes

BY_ROWS: Rules = (("", P(BATCH)),)


def path_name(path: Any) -> str:
    """A pytree path as text, e.g. `layers/mlp/down`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match_spec(path: Any, ndim: int, rules: Rules) -> P:
    """The spec of a leaf: of the first rule whose regular expression matches in its path.

    Scalars are replicated. Raises ValueError where no rule matches.
    """
    name = path_name(path)
    spec = P() if not ndim else next((s for r, s in rules if re.search(r, name)), None)
    if spec is None:
        raise ValueError(f"no sharding rule matches {name!r}: add one to the model's table")
    return spec


def match_specs(tree: Any, rules: Rules) -> Any:
    """The specs of all leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: match_spec(path, leaf.ndim, rules), tree
    )


def shardings(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Shardings of a pytree of arrays; `lead` are the mesh axes of extra leading array axes.

    What has fewer axes than the spec of its path, such as factored moments, is replicated. Raises
    ValueError where no rule matches or a mesh axis does not divide a dimension.
    """

    def of_leaf(path, leaf):
        shape = leaf.shape[len(lead) :]
        spec = match_spec(path, len(shape), rules)
        spec = spec if len(spec) <= len(shape) else P()
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


def with_shardings(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Shapes with their shardings. Raises what `shardings` does."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        shardings(tree, rules, mesh, lead),
    )


def param_shardings(lm: LM, mesh: Mesh) -> Any:
    """The sharding of each parameter of a model. Raises ValueError if the mesh does not fit it."""
    return shardings(shapes(lm), lm.rules, mesh)


def constrain(tree: Any, rules: Rules) -> Any:
    """Constrain a pytree to the rules' shardings, along axes that no `shard_map` has split."""
    mesh, free = jax.sharding.get_abstract_mesh(), auto_axes()
    if not free:
        return tree
    kept = lambda place: NamedSharding(mesh, restrict_spec(place.spec, free))  # noqa: E731
    return lax.with_sharding_constraint(tree, jax.tree.map(kept, shardings(tree, rules, mesh)))


def restrict_spec(spec: P, axes: Collection[str]) -> P:
    """A spec without all axes but these."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec)
    return P(*(tuple(axis for axis in part if axis in axes) or None for part in parts))


def local_rows(mesh: Mesh, count: int) -> list[slice]:
    """The rows of a batch of `count` on this process's devices, as few ascending slices."""
    held = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((count,)).values()
    runs: list[slice] = []
    for start, stop, _ in sorted({index[0].indices(count) for index in held if index is not None}):
        if runs and runs[-1].stop == start:
            start = runs.pop().start
        runs.append(slice(start, stop))
    return runs


def assemble_batch(mesh: Mesh, count: int, read: Callable[[slice], Any]) -> Any:
    """A batch, arrays [groups, count, ...], over all devices; each process reads only its rows."""
    runs = local_rows(mesh, count)
    sharding = NamedSharding(mesh, P(None, BATCH))

    def of_leaf(*parts: np.ndarray) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(count)
            own = zip(runs, parts, strict=True)
            run, rows = next((run, rows) for run, rows in own if run.start <= start < run.stop)
            return rows[:, start - run.start : stop - run.start]

        shape = parts[0].shape
        return jax.make_array_from_callback((shape[0], count, *shape[2:]), sharding, piece)

    return jax.tree.map(of_leaf, *map(read, runs))


def pad_rows(tree: Any) -> Any:
    """Leaves [B, ...] padded with rows of zeros until the mesh divides B."""

    def pad(x):
        return jnp.pad(x, [(0, -x.shape[0] % shard_count(*BATCH))] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(pad, tree)

"""Shardings of parameters, by rules from paths to specs, and of the rows of batches."""

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
    """Formats a pytree path, e.g. `layers/mlp/down`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match_spec(path: Any, ndim: int, rules: Rules) -> P:
    """Returns the spec of a leaf: of the first rule whose regular expression matches in its path.

    Args:
        path: the pytree path of the leaf.
        ndim: the number of axes of the leaf; scalars are replicated.
        rules: pairs of a regular expression and a spec.

    Raises:
        ValueError: if no rule matches.
    """
    name = path_name(path)
    spec = P() if not ndim else next((spec for rule, spec in rules if re.search(rule, name)), None)
    if spec is None:
        raise ValueError(f"no sharding rule matches {name!r}: add one to the model's table")
    return spec


def match_specs(tree: Any, rules: Rules) -> Any:
    """Returns the specs of all leaves of a pytree. Raises what `match_spec` raises."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: match_spec(path, leaf.ndim, rules), tree
    )


def shardings(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Returns the shardings of a pytree of arrays.

    A leaf with fewer axes than the spec of its path, such as factored moments, is replicated.

    Args:
        tree: arrays, or their shapes.
        rules: pairs of a regular expression and a spec.
        mesh: the mesh to shard over.
        lead: the mesh axes of extra leading array axes.

    Raises:
        ValueError: if no rule matches, or if a mesh axis does not divide a dimension.
    """

    def shard_leaf(path, leaf):
        shape = leaf.shape[len(lead) :]
        spec = match_spec(path, len(shape), rules)
        spec = spec if len(spec) <= len(shape) else P()
        for size, axes in zip(shape, spec, strict=False):
            axes = axes if isinstance(axes, tuple) else (axes,)
            sizes = {axis: mesh.shape[axis] for axis in axes if axis is not None}
            if size % math.prod(sizes.values()):
                split = " × ".join(f"{axis}={devices}" for axis, devices in sizes.items())
                raise ValueError(
                    f"{path_name(path)} has a dimension of {size}, which the mesh axis {split} "
                    f"does not divide: choose a smaller {' or '.join(sizes)}"
                )
        return NamedSharding(mesh, P(*lead, *spec))

    return jax.tree_util.tree_map_with_path(shard_leaf, tree)


def with_shardings(
    tree: Any, rules: Rules, mesh: Mesh | AbstractMesh, lead: tuple[str | None, ...] = ()
) -> Any:
    """Returns the shapes of a pytree with its shardings. Raises what `shardings` raises."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(tree, rules, mesh, lead),
    )


def param_shardings(lm: LM, mesh: Mesh) -> Any:
    """Returns the sharding of each parameter of a model.

    Raises:
        ValueError: if the mesh does not fit the model.
    """
    return shardings(shapes(lm), lm.rules, mesh)


def constrain(tree: Any, rules: Rules) -> Any:
    """Constrains a pytree to the rules' shardings, along axes that no `shard_map` has split."""
    mesh, free = jax.sharding.get_abstract_mesh(), auto_axes()
    if not free:
        return tree
    constraints = jax.tree.map(
        lambda sharding: NamedSharding(mesh, restrict_spec(sharding.spec, free)),
        shardings(tree, rules, mesh),
    )
    return lax.with_sharding_constraint(tree, constraints)


def restrict_spec(spec: P, axes: Collection[str]) -> P:
    """Returns a spec without all mesh axes but these."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in spec)
    return P(*(tuple(axis for axis in entry if axis in axes) or None for entry in entries))


def local_rows(mesh: Mesh, count: int) -> list[slice]:
    """Returns the rows of a batch of `count` on this process's devices, as ascending slices."""
    indices = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((count,)).values()
    bounds = sorted({index[0].indices(count) for index in indices if index is not None})
    rows: list[slice] = []
    for start, stop, _ in bounds:
        if rows and rows[-1].stop == start:
            start = rows.pop().start
        rows.append(slice(start, stop))
    return rows


def assemble_batch(mesh: Mesh, count: int, read: Callable[[slice], Any]) -> Any:
    """Returns a batch over all devices; each process reads only the rows of its own devices.

    Args:
        mesh: the mesh; its axes `data` and `fsdp` split the rows.
        count: the number of rows of the batch.
        read: returns a pytree of arrays [groups, rows, ...] for a slice of the rows.

    Returns:
        A pytree of arrays [groups, count, ...].
    """
    slices = local_rows(mesh, count)
    sharding = NamedSharding(mesh, P(None, BATCH))

    def assemble_leaf(*parts: np.ndarray) -> jax.Array:
        def read_shard(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(count)
            pairs = zip(slices, parts, strict=True)
            rows, part = next(
                (rows, part) for rows, part in pairs if rows.start <= start < rows.stop
            )
            return part[:, start - rows.start : stop - rows.start]

        groups, _, *sizes = parts[0].shape
        return jax.make_array_from_callback((groups, count, *sizes), sharding, read_shard)

    return jax.tree.map(assemble_leaf, *map(read, slices))


def pad_rows(tree: Any) -> Any:
    """Pads leaves [B, ...] with rows of zeros until the mesh divides B."""

    def pad(x):
        padding = -x.shape[0] % shard_count(*BATCH)
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(pad, tree)

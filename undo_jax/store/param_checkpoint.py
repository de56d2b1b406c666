"""Reads and writes parameters through Orbax: plain dicts of arrays, with their digest.

Each of several processes saves its own shards.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from undo_jax.runtime import signals
from undo_jax.runtime.atomic_files import absolute_path
from undo_jax.runtime.sharding import path_name, with_shardings
from undo_jax.store.array_digest import digest
from undo_jax.types import LM, Params, shapes

DIGEST = "digest"  # key of the metadata: the digest of the arrays


def save(path: epath.Path, params: Params) -> None:
    """Starts writing the parameters; `wait_until_saved` waits for them."""
    _checkpointer().save(absolute_path(path), params, custom_metadata={DIGEST: digest(params)})


def wait_until_saved() -> None:
    """Waits until everything that `save` has started is written."""
    _checkpointer().wait_until_finished()


def restore(path: epath.PathLike, lm: LM, mesh: Mesh) -> Params:
    """Restores parameters from an Orbax checkpoint, and verifies the digest that `save` stored.

    Args:
        path: the folder of the checkpoint.
        lm: the model whose parameters they are.
        mesh: the mesh to shard them over, by the model's rules.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it belongs to another model, cannot be read, or holds other parameters than
            were saved.
    """
    path = absolute_path(epath.Path(path))
    if not path.exists():
        if (path.parent / "summary.json").exists():
            raise FileNotFoundError(
                f"{path.parent} has no parameters any more: delete it, and a run makes it again"
            )
        raise FileNotFoundError(f"no checkpoint at {path}: check the path")
    # compare the shapes with those of the model
    expected = shapes(lm)
    with _one_line_errors(path):
        checkpoint = _checkpointer().metadata(path)
        metadata = checkpoint.item_metadata
        if metadata is None or not jax.tree.leaves(getattr(metadata, "tree", None)):
            hint = "" if path.name == "params" else "; of an artifact, give its folder `params`"
            raise ValueError(f"it holds no arrays{hint}")
    saved_digest = (checkpoint.custom_metadata or {}).get(DIGEST)
    expected_shapes, saved_shapes = _shapes(expected), _shapes(metadata.tree)
    for name in sorted(expected_shapes.keys() | saved_shapes.keys()):
        if expected_shapes.get(name) != saved_shapes.get(name):
            raise ValueError(
                f"checkpoint {path} is of another model: {name} has shape "
                f"{saved_shapes.get(name, 'none')}, this model needs "
                f"{expected_shapes.get(name, 'none')}"
            )
    # the digest is of the arrays in the dtypes they were saved in
    target = with_shardings(expected, lm.rules, mesh)
    if saved_digest:
        target = jax.tree.map(lambda x, saved: x.update(dtype=saved.dtype), target, metadata.tree)
    with _one_line_errors(path):
        params = _checkpointer().restore(path, target)
        if saved_digest and digest(params) != saved_digest:
            raise ValueError("its parameters are not those that were saved")
    return jax.tree.map(lambda x, like: x.astype(like.dtype), params, expected)


@contextmanager
def _one_line_errors(path: epath.Path) -> Iterator[None]:
    """Turns errors of Orbax and TensorStore, often many lines, into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        signals.reraise_swallowed()
        reason = str(error.__cause__ or error).split("\n")[0]
        remedy = f"delete {path.parent}, and a run makes it again"
        raise ValueError(
            f"cannot read a checkpoint at {path}: {reason}; if it is damaged, "
            f"{remedy if path.name == 'params' else 'copy or import it again'}"
        ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


@functools.cache
def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer()

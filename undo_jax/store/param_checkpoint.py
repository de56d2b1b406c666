"""Parameters on disk, through Orbax: plain dicts of arrays, no Flax types; with their digest.

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
    """Start writing the parameters; `wait_until_saved` waits for them."""
    _checkpointer().save(absolute_path(path), params, custom_metadata={DIGEST: digest(params)})


def wait_until_saved() -> None:
    """Wait until all that `save` has started is written."""
    _checkpointer().wait_until_finished()


def restore(path: epath.PathLike, lm: LM, mesh: Mesh) -> Params:
    """Parameters from an Orbax checkpoint, verified by the digest that `save` stored with them.

    Raises FileNotFoundError where there is none and ValueError where it belongs to another model,
    cannot be read, or holds other parameters than were saved.
    """
    path = absolute_path(epath.Path(path))
    if not path.exists() and (path.parent / "summary.json").exists():
        raise FileNotFoundError(
            f"{path.parent} has no parameters any more: delete it, and a run makes it again"
        )
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path")
    wanted = shapes(lm)
    with _readable(path):
        found = _checkpointer().metadata(path)
    metadata, known = found.item_metadata, (found.custom_metadata or {}).get(DIGEST)
    if metadata is None or not jax.tree.leaves(getattr(metadata, "tree", None)):
        raise ValueError(
            f"cannot read a checkpoint at {path}: it holds no arrays; of an artifact, give its "
            "folder `params`"
        )
    want, have = _shapes(wanted), _shapes(metadata.tree)
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise ValueError(
                f"checkpoint {path} is of another model: {name} has shape "
                f"{have.get(name, 'none')}, this model needs {want.get(name, 'none')}"
            )
    target = with_shardings(wanted, lm.rules, mesh)
    if known:  # the digest is of the arrays in the dtypes they were saved in
        target = jax.tree.map(lambda x, saved: x.update(dtype=saved.dtype), target, metadata.tree)
    with _readable(path):
        params = _checkpointer().restore(path, target)
        if known and digest(params) != known:
            raise ValueError("its parameters are not those that were saved")
    return jax.tree.map(lambda x, want: x.astype(want.dtype), params, wanted)


@contextmanager
def _readable(path: epath.Path) -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise, often many lines, into a ValueError of one."""
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

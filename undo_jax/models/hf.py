"""Reads and writes weights in Hugging Face's format.

There a Linear's weight is [out, in], one tensor per layer; here it is [in, out], layers stacked.
"""

import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors.numpy import save_file

from undo_jax.checks import check_choice
from undo_jax.models.hf_folder import (
    CONFIG,
    INDEX,
    SINGLE,
    describe,
    family,
    local,
    open_tensors,
    write_folder,
)
from undo_jax.models.hf_special import GENERATION, IDS
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.sharding import param_shardings, path_name
from undo_jax.types import Params, shapes

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
HEAD = "lm_head.weight"
_AGAIN = "download the folder again, or give the model that its config.json states"
ROW_BLOCK = 4096  # rows of a table that are read or compared at a time
ALIGNMENT = 64  # bytes: a CPU device copies memory with less


class Tensor(NamedTuple):
    """A Hugging Face tensor: one parameter of the model, or the rows of several in turn."""

    paths: tuple[str, ...]  # of the parameters
    layer: int | None  # index in the stacked parameters; None outside the layers
    parts: tuple[tuple[int, ...], ...]  # the shape of each parameter in Hugging Face's layout

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in Hugging Face's layout."""
        return (sum(rows for rows, *_ in self.parts), *self.parts[0][1:])


def tensors(lm: Transformer) -> dict[str, Tensor]:
    """Returns every tensor of the model by its Hugging Face name, layer by layer.

    Raises ValueError for a parameter that has no name in the model's family.
    """
    leaves, names = _leaves(shapes(lm)), family(lm.family).NAMES
    if unnamed := sorted(leaves.keys() - names.keys()):
        raise ValueError(f"{lm.family} has no tensor for {unnamed[0]}: it cannot be of this family")
    # files list the embedding, then layer after layer, then the rest
    paths = [path for path in names if path in leaves]
    stacked = [path for path in paths if path.startswith("layers/")]
    rest = [path for path in paths if path not in ("embedding", *stacked)]
    order = [("embedding", None), *((path, i) for i in range(lm.layers) for path in stacked)]
    by_name: dict[str, Tensor] = {}
    for path, layer in [*order, *((path, None) for path in rest)]:
        name, shape = names[path].format(layer), leaves[path].shape
        shape = shape if layer is None else shape[:0:-1]
        before = by_name.get(name, Tensor((), layer, ()))
        by_name[name] = Tensor((*before.paths, path), layer, (*before.parts, shape))
    return by_name


def named(lm: Transformer, params: Params, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
    """Yields the parameters one by one as NumPy arrays with Hugging Face's names and layout.

    Every process must iterate over all of them; each receives whole arrays.
    """
    leaves = _leaves(params)
    for name, (paths, layer, _) in tensors(lm).items():
        cuts = (_cut(leaves[path], layer, dtype) for path in paths)
        parts = [multihost_utils.process_allgather(part, tiled=True) for part in cuts]
        yield name, np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def load(folder: epath.PathLike, lm: Transformer, mesh: Mesh) -> Params:
    """Loads fp32 parameters from safetensors files; only each device's own shard is read.

    Raises FileNotFoundError for a missing file, and ValueError for a damaged file and for tensors
    that do not fit the model, all before any weight is read.
    """
    shardings, folder = _leaves(param_shardings(lm, mesh)), local(folder)
    with ExitStack() as stack:
        # the rows of a stored tensor that each layer of a parameter consists of
        stored = open_tensors(folder, stack, getattr(family(lm.family), "text_name", str))
        _check(folder, lm, stored)
        slices: dict[str, list[Any]] = {path: [] for path in shardings}
        for name, (paths, _, parts) in tensors(lm).items():
            start = 0
            for path, (rows, *_) in zip(paths, parts, strict=True):
                slices[path].append((stored[name], start))
                start += rows

        def load_leaf(path, leaf):
            name = path_name(path)
            read = _reader(leaf.shape, slices[name], stacked=name.startswith("layers/"))
            return jax.make_array_from_callback(leaf.shape, shardings[name], read)

        return jax.tree_util.tree_map_with_path(load_leaf, shapes(lm))


def save(
    folder: epath.PathLike,
    lm: Transformer,
    params: Params,
    dtype: str = "float32",
    max_shard_bytes: float = 5e9,
    ids: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a folder that transformers loads, atomically; one file at a time is in memory.

    `ids` are the ids of special tokens by the names in `IDS`, `extra` the content of further files,
    e.g. a tokenizer's, by name. `document_start` is not written. Raises FileExistsError for a
    folder that is not empty and ValueError for a model that config.json cannot express.
    """
    folder = local(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists: give a new folder")
    if not 0 < max_shard_bytes < math.inf:
        raise ValueError(f"files of {max_shard_bytes:g} bytes: give a finite size above 0")
    _check_shapes(lm, params)
    ids = {**dict.fromkeys(IDS), **(ids or {})}
    check_choice("dtype", dtype, ("float32", "bfloat16"))
    config = {**describe(lm), "torch_dtype": dtype} | ids
    if ids["pad_token_id"] is None:  # to pad batches; it needs no embedding
        ids["pad_token_id"] = ids["bos_token_id"]
    # divide the tensors among files
    itemsize = jnp.dtype(dtype).itemsize
    sizes = {name: itemsize * math.prod(t.shape) for name, t in tensors(lm).items()}
    shards = _shards(sizes, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(shards) > 1 else [SINGLE]
    small_files = {CONFIG: _json(config), GENERATION: _json(ids), **(extra or {})}
    if len(shards) > 1:
        weight_map = {n: f for f, names in zip(files, shards, strict=True) for n in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        small_files[INDEX] = _json(index)
    # all processes gather each tensor, process 0 writes it
    stream = named(lm, params, dtype)
    with write_folder(folder) as unfinished:
        if jax.process_index() == 0:
            for name, content in small_files.items():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                (unfinished / name).write_bytes(content)
        for file, names in zip(files, shards, strict=True):
            content = dict(itertools.islice(stream, len(names)))
            if jax.process_index() == 0:
                save_file(content, unfinished / file, metadata={"format": "pt"})
                # else readable by its owner only
                shutil.copymode(unfinished / CONFIG, unfinished / file)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_shapes(lm: Transformer, params: Params) -> None:
    """Raises ValueError where the parameters are not those of the model."""
    needed, present = (
        {name: leaf.shape for name, leaf in _leaves(tree).items()} for tree in (shapes(lm), params)
    )
    for name in sorted(needed.keys() | present.keys()):
        if needed.get(name) != present.get(name):
            raise ValueError(
                f"parameters of another model: {name} has shape {present.get(name, 'none')}, "
                f"this model needs {needed.get(name, 'none')}"
            )


@functools.partial(jax.jit, static_argnames="dtype")
def _cut(leaf: jax.Array, layer: int | None, dtype: str) -> jax.Array:
    """Returns one Hugging Face tensor of a parameter."""
    return (leaf if layer is None else leaf[layer].T).astype(dtype)


def _reader(
    shape: tuple[int, ...], slices: list[tuple[Any, int]], stacked: bool
) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads a device's shard of a parameter.

    `slices` are stored tensors, one per layer if `stacked`, each with its first row that belongs to
    the parameter. Devices with the same shard share one array.
    """

    @functools.cache
    def read(*bounds: tuple[int, int]) -> np.ndarray:
        part = _aligned([stop - start for start, stop in bounds])
        if not stacked:
            (first, end), *rest = bounds
            columns = [slice(*bound) for bound in rest]
            for start in range(first, end, ROW_BLOCK):
                rows = slice(start, min(start + ROW_BLOCK, end))
                part[start - first : rows.stop - first] = slices[0][0][(rows, *columns)]
            return part
        (first, end), *rest = reversed(bounds[1:])
        columns = [slice(*bound) for bound in rest]
        for i, (stored, start) in enumerate(slices[slice(*bounds[0])]):
            part[i] = stored[(slice(first + start, end + start), *columns)].T
        return part

    return lambda index: read(
        *(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
    )


def _aligned(shape: list[int]) -> np.ndarray:
    """Returns an uninitialised fp32 array that a CPU device can use without a copy."""
    size = 4 * math.prod(shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(np.float32).reshape(shape)


def _check(folder: epath.Path, lm: Transformer, stored: Mapping[str, Any]) -> None:
    """Raises ValueError where the tensors in a folder are not those of the model."""
    needed, table = tensors(lm), family(lm.family).NAMES["embedding"]
    for name, tensor in needed.items():
        if name not in stored:
            raise ValueError(f"{folder} has no tensor {name}, which this model needs: {_AGAIN}")
        shape, dtype = tuple(stored[name].get_shape()), stored[name].get_dtype()
        if name == table and len(shape) == 2 and shape[0] != lm.vocabulary:
            raise ValueError(
                f"{name} in {folder} holds {shape[0]} token ids, this model "
                f"vocabulary={lm.vocabulary}: {_AGAIN}"
            )
        if shape != tensor.shape:
            raise ValueError(
                f"{name} in {folder} has shape {shape}, this model needs {tensor.shape}: {_AGAIN}"
            )
        if dtype not in DTYPES:
            raise ValueError(
                f"{name} in {folder} is of type {dtype}: give weights in {', '.join(DTYPES)}"
            )
    extra = next((name for name in stored if name not in needed and name != HEAD), None)
    if extra is not None:
        raise ValueError(f"{folder} has a tensor {extra} that this model lacks: {_AGAIN}")
    if HEAD not in needed and HEAD in stored and not _same(stored[HEAD], stored[table]):
        raise ValueError(
            f"{HEAD} in {folder} differs from {table}, to which this model's head is tied: {_AGAIN}"
        )


def _same(first: Any, second: Any) -> bool:
    """Returns whether two stored tables are equal, without loading either whole."""
    if first.get_shape() != second.get_shape():
        return False
    rows = first.get_shape()[0]
    parts = [slice(start, min(start + ROW_BLOCK, rows)) for start in range(0, rows, ROW_BLOCK)]
    return all(np.array_equal(first[part], second[part]) for part in parts)


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Splits the names, in order, into files of at most `limit` bytes or one larger tensor."""
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards, used = [*shards, []], 0
        shards[-1].append(name)
        used += size
    return shards

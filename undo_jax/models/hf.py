"""Weights as Hugging Face stores them, in and out.

There a Linear's weight is [out, in], one tensor per layer; here it is [in, out], layers stacked.
"""

import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors.numpy import save_file

from undo_jax.models.hf_folder import (
    CONFIG,
    INDEX,
    SINGLE,
    described,
    family,
    local,
    opened,
    written,
)
from undo_jax.models.hf_special import GENERATION, IDS
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.sharding import param_shardings, path_name
from undo_jax.types import Params, shapes

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
HEAD = "lm_head.weight"
_AGAIN = "download the folder again, or give the model that its config.json states"
ROW_BLOCK = 4096  # rows of a table that are read or compared at a time
ALIGNMENT = 64  # bytes: such memory a CPU device takes as it is; else it copies


class Tensor(NamedTuple):
    """A Hugging Face tensor: its parameter here, or several whose rows follow each other there."""

    paths: tuple[str, ...]
    layer: int | None  # its index in the stack; None outside the layers
    parts: tuple[tuple[int, ...], ...]  # the shape of each parameter there

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape there."""
        return (sum(rows for rows, *_ in self.parts), *self.parts[0][1:])


def tensors(lm: Transformer) -> dict[str, Tensor]:
    """Every tensor of the model by its Hugging Face name, layer by layer.

    Raises ValueError for a parameter for which the model's family has no name.
    """
    leaves, names = _leaves(shapes(lm)), family(lm.family).NAMES
    if strange := sorted(leaves.keys() - names.keys()):
        raise ValueError(f"{lm.family} has no tensor for {strange[0]}: it cannot be of this family")
    own = [path for path in names if path in leaves]
    inside = [path for path in own if path.startswith("layers/")]
    after = [path for path in own if path not in ("embedding", *inside)]
    places = [("embedding", None), *((path, i) for i in range(lm.layers) for path in inside)]
    found: dict[str, Tensor] = {}
    for path, layer in [*places, *((path, None) for path in after)]:
        name, shape = names[path].format(layer), leaves[path].shape
        shape = shape if layer is None else shape[:0:-1]
        before = found.get(name, Tensor((), layer, ()))
        found[name] = Tensor((*before.paths, path), layer, (*before.parts, shape))
    return found


def named(lm: Transformer, params: Params, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
    """The parameters one by one as NumPy arrays, with Hugging Face's names, layout and dtype.

    Every process must iterate over all of them, and gets each whole.
    """
    leaves = _leaves(params)
    for name, (paths, layer, _) in tensors(lm).items():
        cut = (_cut(leaves[path], layer, dtype) for path in paths)
        whole = [multihost_utils.process_allgather(part, tiled=True) for part in cut]
        yield name, np.ascontiguousarray(whole[0] if len(whole) == 1 else np.concatenate(whole))


def load(folder: epath.PathLike, lm: Transformer, mesh: Mesh) -> Params:
    """fp32 parameters from safetensors files; only each device's own shard is read.

    Raises FileNotFoundError for a missing file and ValueError for one that cannot be read and for
    tensors that are not this model's, all before any weight is read.
    """
    wanted, places = shapes(lm), _leaves(param_shardings(lm, mesh))
    folder = local(folder)
    with ExitStack() as stack:
        stored = opened(folder, stack, getattr(family(lm.family), "text_name", str))
        _check(folder, lm, stored)
        slices: dict[str, list[Any]] = {path: [] for path in places}
        for name, (paths, _, parts) in tensors(lm).items():
            start = 0
            for path, (rows, *_) in zip(paths, parts, strict=True):
                slices[path].append(stored[name] if len(paths) == 1 else _Rows(stored[name], start))
                start += rows

        def place(path, leaf):
            name = path_name(path)
            read = _reader(leaf.shape, slices[name], stacked=name.startswith("layers/"))
            return jax.make_array_from_callback(leaf.shape, places[name], read)

        return jax.tree_util.tree_map_with_path(place, wanted)


def save(
    folder: epath.PathLike,
    lm: Transformer,
    params: Params,
    dtype: str = "float32",
    max_shard_bytes: float = 5e9,
    ids: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a folder that transformers loads, atomically; one file at a time is in memory.

    `ids` are those of special tokens, see `IDS`; None: there are none. Files in `extra`, e.g. a
    tokenizer's, are written, too. Raises FileExistsError for a folder that is not empty and
    ValueError for a model that Hugging Face's configuration cannot express; `document_start` is
    left out.
    """
    folder = local(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists: give a new folder")
    if not 0 < max_shard_bytes < math.inf:
        raise ValueError(f"files of {max_shard_bytes:g} bytes: give a finite size above 0")
    _check_shapes(lm, params)
    ids = {**dict.fromkeys(IDS), **(ids or {})}
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown dtype {dtype!r}: choose float32 or bfloat16")
    description = {**described(lm), "torch_dtype": dtype} | ids
    width = jnp.dtype(dtype).itemsize
    if ids["pad_token_id"] is None:  # to pad batches; it needs no embedding
        ids["pad_token_id"] = ids["bos_token_id"]
    sizes = {name: width * math.prod(t.shape) for name, t in tensors(lm).items()}
    shards = _shards(sizes, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(shards) > 1 else [SINGLE]
    more = {GENERATION: (json.dumps(ids, indent=2) + "\n").encode(), **(extra or {})}
    stream = named(lm, params, dtype)
    with written(folder) as made:
        if jax.process_index() == 0:
            (made / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        for file, names in zip(files, shards, strict=True):
            content = dict(itertools.islice(stream, len(names)))
            if jax.process_index() == 0:
                save_file(content, made / file, metadata={"format": "pt"})
                shutil.copymode(made / CONFIG, made / file)  # else readable by its owner only
        if jax.process_index() == 0:
            if len(shards) > 1:
                where = {n: f for f, names in zip(files, shards, strict=True) for n in names}
                index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
                (made / INDEX).write_text(json.dumps(index, indent=2) + "\n")
            for name, content in more.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(content)


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_shapes(lm: Transformer, params: Params) -> None:
    """Raises ValueError where the parameters are not those of the model."""
    wanted = _leaves(shapes(lm))
    want, have = ({k: v.shape for k, v in leaves.items()} for leaves in (wanted, _leaves(params)))
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise ValueError(
                f"parameters of another model: {name} has shape {have.get(name, 'none')}, "
                f"this model needs {want.get(name, 'none')}"
            )


@functools.partial(jax.jit, static_argnames="dtype")
def _cut(leaf: jax.Array, layer: int | None, dtype: str) -> jax.Array:
    """One Hugging Face tensor of a leaf."""
    return (leaf if layer is None else leaf[layer].T).astype(dtype)


@dataclass(frozen=True)
class _Rows:
    """The rows of a stored tensor from `start` on."""

    stored: Any
    start: int

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        first, *rest = index
        return self.stored[(slice(first.start + self.start, first.stop + self.start), *rest)]


def _reader(
    shape: tuple[int, ...], slices: list[Any], stacked: bool
) -> Callable[[Any], np.ndarray]:
    """A function that reads a device's shard of a leaf; devices with the same shard share it."""

    @functools.cache
    def read(*bounds: tuple[int, int]) -> np.ndarray:
        part = _aligned([stop - start for start, stop in bounds])
        if not stacked:
            (first, end), *rest = bounds
            for start in range(first, end, ROW_BLOCK):
                rows = slice(start, min(start + ROW_BLOCK, end))
                part[start - first : rows.stop - first] = slices[0][
                    (rows, *(slice(*bound) for bound in rest))
                ]
            return part
        cut = tuple(slice(*bound) for bound in reversed(bounds[1:]))
        for i, layer in enumerate(range(*bounds[0])):
            part[i] = slices[layer][cut].T
        return part

    return lambda index: read(
        *(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))
    )


def _aligned(shape: list[int]) -> np.ndarray:
    """An fp32 array, not yet written."""
    size = 4 * math.prod(shape)
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(np.float32).reshape(shape)


def _check(folder: epath.Path, lm: Transformer, stored: Mapping[str, Any]) -> None:
    """Raises ValueError where the tensors in a folder are not those of the model."""
    wanted, table = tensors(lm), family(lm.family).NAMES["embedding"]
    for name, tensor in wanted.items():
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
    extra = next((name for name in stored if name not in wanted and name != HEAD), None)
    if extra is not None:
        raise ValueError(f"{folder} has a tensor {extra} that this model lacks: {_AGAIN}")
    if HEAD not in wanted and HEAD in stored and not _same(stored[HEAD], stored[table]):
        raise ValueError(
            f"{HEAD} in {folder} differs from {table}, to which this model's head is tied: {_AGAIN}"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two stored tables are equal, without loading either whole."""
    if one.get_shape() != other.get_shape():
        return False
    rows = one.get_shape()[0]
    parts = [slice(start, min(start + ROW_BLOCK, rows)) for start in range(0, rows, ROW_BLOCK)]
    return all(np.array_equal(one[part], other[part]) for part in parts)


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names in order, split into files of at most `limit` bytes, or of one larger tensor."""
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards, used = [*shards, []], 0
        shards[-1].append(name)
        used += size
    return shards

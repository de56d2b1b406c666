"""Gemma-2 weights and configurations as Hugging Face stores them, in and out.

A Linear's weight is [out, in] there and one file entry a layer; here it is [in, out] and stacked.
The embedding is tied and stored once.
"""

import functools
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import Gemma2
from undo_jax.sharding import path_name, placement
from undo_jax.types import Params, shapes

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "layers/before_attention/norm": "model.layers.{}.input_layernorm.weight",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj.weight",
    "layers/after_attention/norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/before_mlp/norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down": "model.layers.{}.mlp.down_proj.weight",
    "layers/after_mlp/norm": "model.layers.{}.post_feedforward_layernorm.weight",
    "final/norm": "model.norm.weight",
}
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "feed_forward": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "vocabulary": "vocab_size",
    "window": "sliding_window",
}
SCALARS = {
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
    "norm_epsilon": "rms_norm_eps",
    "init_stddev": "initializer_range",
}
FIXED = {  # what a configuration may state and this decoder cannot do otherwise
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MODEL_TYPE, EMBEDDING, HEAD = "gemma2", NAMES["embedding"], "lm_head.weight"
IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}  # of Gemma's own tokenizer
GENERATION = "generation_config.json"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
UNSTATED = ("document_start", "dtype", "remat", "unroll")  # fields that a folder does not state
ROWS = 4096  # of a table, compared at a time
LARGEST = 2**63  # that a configuration may state


class Tensor(NamedTuple):
    """Where a Hugging Face tensor is here, and its shape there."""

    path: str
    layer: int | None  # its place in the stack; None outside the layers
    shape: tuple[int, ...]


def tensors(config: Gemma2) -> dict[str, Tensor]:
    """Every tensor of the model by its Hugging Face name, layer by layer."""
    leaves = _leaves(shapes(Functional(config)))
    inside = [path for path in NAMES if path.startswith("layers/")]
    places = [("embedding", None), *itertools.product(inside, range(config.layers))]
    places = [*sorted(places, key=lambda place: place[1] or 0), ("final/norm", None)]
    return {
        NAMES[path].format(layer): Tensor(
            path, layer, leaves[path].shape if layer is None else leaves[path].shape[:0:-1]
        )
        for path, layer in places
    }


def named(config: Gemma2, params: Params, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
    """The parameters one by one as Hugging Face names, orders and rounds them: NumPy arrays.

    Every process must ask for each, and gets it whole.
    """
    leaves = _leaves(params)
    for name, (path, layer, _) in tensors(config).items():
        tensor = _cut(leaves[path], layer, dtype)
        yield name, np.ascontiguousarray(multihost_utils.process_allgather(tensor, tiled=True))


def read_config(folder: epath.PathLike) -> Gemma2:
    """The architecture that config.json states; what it leaves out is Gemma-2 2B's, as there.

    Raises FileNotFoundError without the file and ValueError for another kind of model.
    """
    file = _local(folder) / CONFIG
    content = _json(file)
    if content.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{file}: model_type={content.get('model_type')!r} is not supported: it must be "
            f"{MODEL_TYPE!r}"
        )
    for key, only in FIXED.items():
        if content.get(key) not in (None, only):
            raise ValueError(f"{file}: {key}={content[key]!r} is not supported: it must be {only}")
    stated: dict[str, Any] = {}
    for field, key in {**SIZES, **SCALARS}.items():
        if key in content:
            none = content[key] is None and field.endswith("softcap")
            stated[field] = None if none else _positive(file, content, key, whole=field in SIZES)
    if "query_pre_attn_scalar" in content:
        stated["attention_scale"] = _positive(file, content, "query_pre_attn_scalar") ** -0.5
    config = Gemma2(**stated, rope_theta=_rope_theta(file, content))
    layers = content.get("layer_types")
    if layers is not None and layers != _layer_types(config):
        raise ValueError(
            f"{file}: layer_types={layers} is not supported: it must be sliding_attention and "
            f"full_attention in turn, {config.layers} in all"
        )
    return config


def read_ids(folder: epath.PathLike) -> dict[str, Any]:
    """Ids of the special tokens that config.json states; what it leaves out is Gemma's own.

    Raises FileNotFoundError without the file and ValueError for what is no id.
    """
    file = _local(folder) / CONFIG
    content = _json(file)
    return checked_ids({name: content.get(name, own) for name, own in IDS.items()}, file)


def checked_ids(ids: Mapping[str, Any], file: epath.Path) -> dict[str, Any]:
    """Ids of special tokens as a file states them. Raises ValueError for what is no id."""
    for name, value in ids.items():
        several = value if isinstance(value, list) and name.startswith("eos") else [value]
        if value is not None and not all(type(i) is int and 0 <= i < LARGEST for i in several):
            raise ValueError(f"{file}: {name}={value!r} is no token id")
    return dict(ids)


def read_bos(folder: epath.PathLike) -> str | None:
    """The name of BOS that tokenizer_config.json states; None where it states none."""
    file = _local(folder) / "tokenizer_config.json"
    token = _json(file).get("bos_token") if file.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def load(folder: epath.PathLike, config: Gemma2, mesh: Mesh) -> Params:
    """fp32 parameters from safetensors files, each device's slice read straight onto it.

    Raises FileNotFoundError for a missing file and ValueError for one that cannot be read and for
    tensors that are not this model's, all before any weight is read.
    """
    wanted, places = shapes(Functional(config)), _leaves(placement(Functional(config), mesh))
    folder = _local(folder)
    with ExitStack() as stack:
        stored = _open(folder, stack)
        _check(folder, config, stored)
        slices: dict[str, list[Any]] = {path: [] for path in NAMES}
        for name, tensor in tensors(config).items():
            slices[tensor.path].append(stored[name])

        def place(path, leaf):
            name = path_name(path)
            read = _reader(leaf.shape, slices[name], stacked=name.startswith("layers/"))
            return jax.make_array_from_callback(leaf.shape, places[name], read)

        return jax.tree_util.tree_map_with_path(place, wanted)


def save(
    folder: epath.PathLike,
    config: Gemma2,
    params: Params,
    dtype: str = "float32",
    max_shard_bytes: float = 5e9,
    ids: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """A folder that transformers loads; it appears once it is whole. One file's worth is in memory.

    `ids` are those of special tokens, see `IDS`; without, there are none. Files in `extra` go
    along, e.g. a tokenizer's. Raises FileExistsError for a folder that holds something and
    ValueError for a model that Hugging Face's configuration cannot state; of `document_start` it
    says nothing.
    """
    folder = _local(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists: give a new folder")
    if not 0 < max_shard_bytes < math.inf:
        raise ValueError(f"files of {max_shard_bytes:g} bytes: give a finite size above 0")
    _check_shapes(config, params)
    ids = {**dict.fromkeys(IDS), **(ids or {})}
    description, width = _describe(config, dtype) | ids, jnp.dtype(dtype).itemsize
    if ids["pad_token_id"] is None:  # in a batch, after the end; no row of the embedding is for it
        ids["pad_token_id"] = ids["bos_token_id"]
    sizes = {name: width * math.prod(t.shape) for name, t in tensors(config).items()}
    shards = _shards(sizes, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(shards) > 1 else [SINGLE]
    more = {GENERATION: (json.dumps(ids, indent=2) + "\n").encode(), **(extra or {})}
    stream = named(config, params, dtype)
    with _whole(folder) as made:
        if jax.process_index() == 0:
            (made / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        for file, names in zip(files, shards, strict=True):
            content = dict(itertools.islice(stream, len(names)))
            if jax.process_index() == 0:
                save_file(content, made / file, metadata={"format": "pt"})
                shutil.copymode(made / CONFIG, made / file)  # the library's is the owner's alone
        if jax.process_index() == 0:
            if len(shards) > 1:
                where = {n: f for f, names in zip(files, shards, strict=True) for n in names}
                index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
                (made / INDEX).write_text(json.dumps(index, indent=2) + "\n")
            for name, content in more.items():
                (made / name).write_bytes(content)


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_shapes(config: Gemma2, params: Params) -> None:
    """Raises ValueError where the parameters are not those of the model."""
    wanted = _leaves(shapes(Functional(config)))
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


def _reader(
    shape: tuple[int, ...], slices: list[Any], stacked: bool
) -> Callable[[Any], np.ndarray]:
    """What reads one device's part of a leaf; devices that hold the same part share it."""

    @functools.cache
    def read(*bounds: tuple[int, int]) -> np.ndarray:
        part = np.empty([stop - start for start, stop in bounds], np.float32)
        if not stacked:
            part[:] = slices[0][tuple(slice(*bound) for bound in bounds)]
            return part
        cut = tuple(slice(*bound) for bound in reversed(bounds[1:]))
        for i, layer in enumerate(range(*bounds[0])):
            part[i] = slices[layer][cut].T
        return part

    return lambda index: read(
        *(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))
    )


def _open(folder: epath.Path, stack: ExitStack) -> dict[str, Any]:
    """Every stored tensor by name, unread. Raises FileNotFoundError and ValueError as `load`."""
    if (folder / SINGLE).exists():
        names = [SINGLE]
    elif (folder / INDEX).exists():
        content = _json(folder / INDEX)
        files = content.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map: download it again")
        names = sorted(set(files.values()))
        for name in names:
            if name != os.path.basename(name) or name in ("", ".", ".."):
                raise ValueError(f"{folder / INDEX} lists {name!r}, which is no file's name")
    else:
        raise FileNotFoundError(f"no {SINGLE} in {folder}: give a folder of safetensors weights")
    stored = {}
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(f"no {name} in {folder}, which {INDEX} lists: download it")
        try:
            file = stack.enter_context(safe_open(folder / name, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"cannot read {folder / name}: {error}: download it again") from error
        stored.update({key: file.get_slice(key) for key in file.keys()})
    return stored


def _check(folder: epath.Path, config: Gemma2, stored: Mapping[str, Any]) -> None:
    """Raises ValueError where the tensors in a folder are not those of the model."""
    wanted = tensors(config)
    for name, tensor in wanted.items():
        if name not in stored:
            raise ValueError(
                f"{folder} has no tensor {name}, which this model needs: wrong preset?"
            )
        shape, dtype = tuple(stored[name].get_shape()), stored[name].get_dtype()
        if name == EMBEDDING and len(shape) == 2 and shape[0] != config.vocabulary:
            raise ValueError(
                f"{name} in {folder} holds {shape[0]} token ids, this model "
                f"vocabulary={config.vocabulary}: set vocabulary={shape[0]}"
            )
        if shape != tensor.shape:
            raise ValueError(
                f"{name} in {folder} has shape {shape}, this model needs {tensor.shape}: "
                "wrong preset?"
            )
        if dtype not in DTYPES:
            raise ValueError(
                f"{name} in {folder} is of type {dtype}: give weights in {', '.join(DTYPES)}"
            )
    extra = next((name for name in stored if name not in wanted and name != HEAD), None)
    if extra is not None:
        raise ValueError(f"{folder} has a tensor {extra} that this model lacks: wrong preset?")
    if HEAD in stored and not _same(stored[HEAD], stored[EMBEDDING]):
        raise ValueError(
            f"{HEAD} in {folder} differs from {EMBEDDING}: a model whose head is not tied to its "
            "embedding is not supported"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two stored tables are equal, without holding either."""
    if one.get_shape() != other.get_shape():
        return False
    rows = one.get_shape()[0]
    parts = [slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS)]
    return all(np.array_equal(one[part], other[part]) for part in parts)


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names in their order, split so that no file is above the limit where a tensor is not."""
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards, used = [*shards, []], 0
        shards[-1].append(name)
        used += size
    return shards


def _describe(config: Gemma2, dtype: str) -> dict[str, Any]:
    """config.json. Raises ValueError for a model that it cannot state."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown dtype {dtype!r}: choose float32 or bfloat16")
    scalar = max(1, round(config.attention_scale**-2))
    if not math.isclose(scalar**-0.5, config.attention_scale, rel_tol=1e-6):
        raise ValueError(
            f"attention_scale={config.attention_scale} is not 1/√n for a whole n, as Hugging "
            "Face's query_pre_attn_scalar needs: it cannot be exported"
        )
    if config.width % config.heads:
        raise ValueError(
            f"width={config.width} is not a multiple of heads={config.heads}, as transformers "
            "demands: it cannot be exported"
        )
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": MODEL_TYPE,
        **FIXED,
        **{key: getattr(config, field) for field, key in {**SIZES, **SCALARS}.items()},
        "query_pre_attn_scalar": scalar,
        "layer_types": _layer_types(config),
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # 5
        "max_position_embeddings": 8192,  # Gemma-2's; nothing is computed from it
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
    }


def _layer_types(config: Gemma2) -> list[str]:
    return [("sliding_attention", "full_attention")[i % 2] for i in range(config.layers)]


def _rope_theta(file: epath.Path, content: Mapping[str, Any]) -> float:
    """From `rope_parameters` (transformers 5) or `rope_theta`. Raises ValueError if it scales."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    known = isinstance(rope, dict) and not rope.keys() - {"rope_theta", "rope_type"}
    if not known or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{file}: rotary positions {rope} are not supported: only rope_theta is")
    return _positive(file, {"rope_theta": Gemma2.rope_theta, **content, **rope}, "rope_theta")


def _positive(file: epath.Path, content: Mapping[str, Any], key: str, whole: bool = False) -> Any:
    """A number above 0. Raises ValueError for anything else."""
    value, kinds = content[key], (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 < value < LARGEST:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{file}: {key}={value!r} must be a {kind} above 0, and below 2^63")
    return value


def _json(file: epath.Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {file.parent}: give the folder of a model")
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}: download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object: download it again")
    return content


def _local(folder: epath.PathLike) -> epath.Path:
    """The folder. Raises ValueError for a bucket: safetensors files are mapped into memory."""
    path = epath.Path(folder)
    if "://" in os.fspath(path):
        raise ValueError(f"{path} is not on this machine: use a local folder, and copy it")
    return path


@contextmanager
def _whole(folder: epath.Path) -> Iterator[epath.Path]:
    """A folder beside `folder` that takes its name at the end; process 0 writes into it."""
    made = folder.parent / f"{folder.name}.unfinished"
    if jax.process_index() == 0:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    try:
        yield made
        if jax.process_index() == 0:
            os.rename(made, folder)
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(made, ignore_errors=True)

"""A folder as Hugging Face lays out a model: config.json and safetensors files."""

import dataclasses
import importlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from undo_jax.models.hf_config_fields import ConfigJson, sliding_layers
from undo_jax.models.transformer import Transformer

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
UNSTATED = (  # fields of a model that config.json does not contain
    "document_start", "dtype", "remat", "unroll", "gradient_sum", "used",
)  # fmt: skip
WITH_IMAGES = {"gemma3": "gemma3_text"}  # model_type -> that of the text model inside
_QUANTISED = "quantization_config"
NO_WEIGHT = re.compile(r"rotary_emb\.inv_freq$")  # buffers that old files hold


def family(name: Any, file: epath.Path | str = "the model") -> ModuleType:
    """Returns the module in models/ for a model_type. Raises ValueError where there is none."""
    supported = families()
    if name not in supported:
        message = f"model_type={name!r} is not supported: {', '.join(supported)} are"
        raise ValueError(f"{file}: {message}")
    return importlib.import_module(f"undo_jax.models.{name}")


def families() -> list[str]:
    """Returns every supported model_type: the modules in models/ that define `NAMES`."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    modules = {name: importlib.import_module(f"undo_jax.models.{name}") for name in names}
    return [name for name, module in modules.items() if hasattr(module, "NAMES")]


def read_config(folder: epath.PathLike) -> Transformer:
    """Returns the model that config.json describes.

    Raises FileNotFoundError without the file and ValueError for an unsupported model.
    """
    file = local(folder) / CONFIG
    config = read_json(file)
    content = text_config(config)
    if kind := config.get(_QUANTISED) or content.get(_QUANTISED):
        kind = kind.get("quant_method", kind) if isinstance(kind, dict) else kind
        raise ValueError(f"{file}: {_QUANTISED} ({kind}) is not supported: give 16 or 32 bits")
    try:
        return read_fields(file, content)
    except ValueError as error:  # sizes that contradict each other: `Architecture` knows no file
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def read_fields(file: epath.Path, content: dict[str, Any]) -> Transformer:
    """Returns the model of a config.json's fields. Raises ValueError for unsupported ones."""
    module = family(content.get("model_type"), file)
    return module.read(ConfigJson(file, {**module.DEFAULTS, **content}))


def text_config(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of the text model inside a model of images and text.

    That of a text model is returned unchanged.
    """
    if not isinstance(name := content.get("model_type"), str) or name not in WITH_IMAGES:
        return content
    text = content.get("text_config")
    ids = {name: value for name, value in content.items() if name.endswith("_token_id")}
    return {**ids, **(text if isinstance(text, dict) else {}),
            "model_type": WITH_IMAGES[name]}  # fmt: skip


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the model's config.json. Raises ValueError if its family's cannot express it."""
    content = family(lm.family).describe(lm)
    reread = read_fields(epath.Path(CONFIG), content)
    for field in dataclasses.fields(lm):
        value: Any = getattr(lm, field.name)
        stated: Any = getattr(reread, field.name)
        if field.name == "sliding":
            value, stated = sliding_layers(lm), sliding_layers(reread)
        elif field.name in UNSTATED:
            continue
        both_floats = isinstance(value, float) and isinstance(stated, float)
        if not (math.isclose(value, stated, rel_tol=1e-6) if both_floats else value == stated):
            raise ValueError(
                f"{field.name}={getattr(lm, field.name)} is not what config.json of {lm.family} "
                "can state: it cannot be exported"
            )
    return content


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file. Reading a part raises ValueError for NaN and infinity."""

    name: str
    file: epath.Path
    tensor: Any  # a slice of safetensors

    def get_shape(self) -> list[int]:
        return self.tensor.get_shape()

    def get_dtype(self) -> str:
        return self.tensor.get_dtype()

    def __getitem__(self, index: Any) -> np.ndarray:
        part = self.tensor[index]
        if not np.isfinite(part).all():
            raise ValueError(
                f"{self.name} in {self.file} holds NaN or infinity: download the folder again, or "
                "give another checkpoint"
            )
        return part


def open_tensors(
    folder: epath.Path, stack: ExitStack, rename: Callable[[str], str | None] = str
) -> dict[str, Stored]:
    """Returns the tensors of all files by name, without reading them.

    `rename` maps stored names to names; None leaves a tensor out. The files stay open until `stack`
    closes. Raises FileNotFoundError for a missing file and ValueError for a damaged one.
    """
    stored: dict[str, Stored] = {}
    for name in _weight_files(folder):
        if not (folder / name).is_file():
            if (folder / name).exists():
                raise FileNotFoundError(f"{folder / name} is no file: download it again")
            raise FileNotFoundError(f"no {name} in {folder}, which {INDEX} lists: download it")
        try:
            file = stack.enter_context(safe_open(folder / name, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"cannot read {folder / name}: {error}: download it again") from error
        for key in file.keys():
            tensor = None if NO_WEIGHT.search(key) else rename(key)
            if tensor in stored:
                raise ValueError(
                    f"{folder} has tensor {key} twice, in {stored[tensor].file.name} and {name}: "
                    "download the folder again"
                )
            if tensor:
                stored[tensor] = Stored(key, folder / name, file.get_slice(key))
    return stored


def _weight_files(folder: epath.Path) -> list[str]:
    """Returns the names of a folder's safetensors files: the only one, or those of the index."""
    if (folder / SINGLE).exists():
        return [SINGLE]
    if (folder / INDEX).exists():
        content = read_json(folder / INDEX)
        files = content.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map: download it again")
        names = sorted(set(files.values()))
        for name in names:
            if name != os.path.basename(name) or name in ("", ".", ".."):
                raise ValueError(f"{folder / INDEX} lists {name!r}, which is no file's name")
        return names
    raise FileNotFoundError(f"no {SINGLE} in {folder}: give a folder of safetensors weights")


def read_json(file: epath.Path) -> dict[str, Any]:
    """Returns a file's JSON object. Raises FileNotFoundError or ValueError where there is none."""
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {file.parent}: give the folder of a model")
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}: download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object: download it again")
    return content


def local(folder: epath.PathLike) -> epath.Path:
    """Returns a folder's path. Raises ValueError for a bucket: safetensors are memory-mapped."""
    path = epath.Path(folder)
    if "://" in os.fspath(path):
        raise ValueError(f"{path} is not on this machine: use a local folder, and copy it")
    return path


@contextmanager
def write_folder(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields a temporary folder for process 0 to write into, and renames it to `folder`."""
    unfinished = folder.parent / f"{folder.name}.unfinished"
    if jax.process_index() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if jax.process_index() == 0:
            os.rename(unfinished, folder)
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)

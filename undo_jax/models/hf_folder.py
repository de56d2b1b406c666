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

from undo_jax.models import hf_config_fields
from undo_jax.models.transformer import Transformer

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
UNSTATED = (  # fields that config.json does not state
    "document_start", "dtype", "remat", "unroll", "gradient_sum", "used",
)  # fmt: skip
WITH_IMAGES = {"gemma3": "gemma3_text"}  # model_type -> that of the text model inside
_QUANTISED = "quantization_config"
NO_WEIGHT = re.compile(r"rotary_emb\.inv_freq$")  # buffers that old files hold


def family(name: Any, file: epath.Path | str = "the model") -> ModuleType:
    """The module in models/ for a model_type. Raises ValueError where there is none."""
    known = families()
    if name not in known:
        raise ValueError(f"{file}: model_type={name!r} is not supported: {', '.join(known)} are")
    return importlib.import_module(f"undo_jax.models.{name}")


def families() -> list[str]:
    """Every known model_type: the modules in models/ that define `NAMES`."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    modules = {name: importlib.import_module(f"undo_jax.models.{name}") for name in names}
    return [name for name, module in modules.items() if hasattr(module, "NAMES")]


def read_config(folder: epath.PathLike) -> Transformer:
    """The model that config.json states.

    Raises FileNotFoundError without the file and ValueError for another kind of model.
    """
    file = local(folder) / CONFIG
    whole = read_json(file)
    content = of_text(whole)
    if kind := whole.get(_QUANTISED) or content.get(_QUANTISED):
        kind = kind.get("quant_method", kind) if isinstance(kind, dict) else kind
        raise ValueError(f"{file}: {_QUANTISED} ({kind}) is not supported: give 16 or 32 bits")
    own = family(content.get("model_type"), file)
    try:
        return own.read(file, content)
    except ValueError as error:  # of sizes that do not fit together, which name no file
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def of_text(content: dict[str, Any]) -> dict[str, Any]:
    """Of a model of images and text, what is stated of its text model."""
    if not isinstance(name := content.get("model_type"), str) or name not in WITH_IMAGES:
        return content
    text = content.get("text_config")
    ids = {name: value for name, value in content.items() if name.endswith("_token_id")}
    return {**ids, **(text if isinstance(text, dict) else {}),
            "model_type": WITH_IMAGES[name]}  # fmt: skip


def described(lm: Transformer) -> dict[str, Any]:
    """The model as config.json; raises ValueError for one that its family's cannot state."""
    own = family(lm.family)
    content = own.describe(lm)
    back = own.read(epath.Path(CONFIG), content)
    for field in dataclasses.fields(lm):
        wanted: Any = getattr(lm, field.name)
        found: Any = getattr(back, field.name)
        if field.name == "sliding":
            wanted, found = hf_config_fields.sliding(lm), hf_config_fields.sliding(back)
        elif field.name in UNSTATED:
            continue
        close = isinstance(wanted, float) and isinstance(found, float)
        if not (math.isclose(wanted, found, rel_tol=1e-6) if close else wanted == found):
            raise ValueError(
                f"{field.name}={getattr(lm, field.name)} is not what config.json of {lm.family} "
                "can state: it cannot be exported"
            )
    return content


@dataclass(frozen=True)
class Stored:
    """A stored tensor. What is read of it is finite, else ValueError."""

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


def opened(
    folder: epath.Path, stack: ExitStack, rename: Callable[[str], str | None] = str
) -> dict[str, Stored]:
    """Every stored tensor by name, as `rename` changes it, not read yet; None leaves one out.

    Raises FileNotFoundError for a missing file and ValueError for one that cannot be read.
    """
    if (folder / SINGLE).exists():
        names = [SINGLE]
    elif (folder / INDEX).exists():
        content = read_json(folder / INDEX)
        files = content.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map: download it again")
        names = sorted(set(files.values()))
        for name in names:
            if name != os.path.basename(name) or name in ("", ".", ".."):
                raise ValueError(f"{folder / INDEX} lists {name!r}, which is no file's name")
    else:
        raise FileNotFoundError(f"no {SINGLE} in {folder}: give a folder of safetensors weights")
    stored: dict[str, Stored] = {}
    for name in names:
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


def read_json(file: epath.Path) -> dict[str, Any]:
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
    """The folder. Raises ValueError for a bucket: safetensors files are mapped into memory."""
    path = epath.Path(folder)
    if "://" in os.fspath(path):
        raise ValueError(f"{path} is not on this machine: use a local folder, and copy it")
    return path


@contextmanager
def written(folder: epath.Path) -> Iterator[epath.Path]:
    """A temporary folder that is renamed to `folder` at the end; process 0 writes into it."""
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

"""Models on disk: what an artifact is, when it is finished, and which are made together.

WORKDIR/STAGE-MODEL-seedN-FINGERPRINT/
    config.json     what it is and what it was made from
    metrics.jsonl   its records
    steps/N/        parameters after N steps, of an attack that keeps them (`Attack.keep_at`)
    params/         its parameters
    summary.json    written last, with hashes of the files beside it; an artifact without it, or
                    with another artifact's, is unfinished and is made again

Several processes share a workdir. Each saves its own shards of the parameters; process 0 writes the
rest, and the others wait for it.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from undo_jax.logs.log import console
from undo_jax.runtime.atomic_files import fsync_tree, hash_file, read_json, write_json
from undo_jax.store import param_checkpoint
from undo_jax.types import LM, Params

STEPS = "steps"  # the folder of parameters kept at chosen steps
LISTS = "lists"  # key of a summary: numbers, of which other models have as many
FILES = "files"  # key of a summary: the hashes of the files beside it


@dataclass(frozen=True, eq=False)
class Artifact:
    """One model at one point of the pipeline, made or not. Equal descriptions share a folder."""

    workdir: epath.Path
    stage: str
    model: str  # its display name
    seed: int | None  # None: it uses no random numbers
    config: Any  # everything else that determines it; not the mesh, the log or a path
    upstream: tuple["Artifact", ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for config.json
    name: str | None = None  # of its folder; None: derived from the other fields

    def describe(self) -> dict[str, Any]:
        """The artifact as JSON."""
        return {
            "stage": self.stage,
            "model": self.model,
            "seed": self.seed,
            "upstream": [artifact.fingerprint for artifact in self.upstream],
            "config": to_json(self.config),
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of the hash of its description, in which 1 and 1.0 are equal."""
        described = self.describe()
        described["config"] = _equal(described["config"])
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def folder(self) -> epath.Path:
        if self.name is not None:
            return self.workdir / self.name
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return self.workdir / f"{self.stage}-{self.slug}{seed}-{self.fingerprint}"

    @property
    def slug(self) -> str:
        """The model's name as a part of folder names."""
        return re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-")[:100]

    @property
    def finished(self) -> bool:
        """Whether it has a summary that is valid and its own."""
        try:
            return bool(self.summary())
        except (FileNotFoundError, ValueError):
            return False

    def summary(self) -> dict[str, Any]:
        """Its summary. Raises FileNotFoundError if it is not finished, ValueError if damaged."""
        path = self.folder / "summary.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{self.stage} of {self.model}, seed {self.seed}, is not finished in "
                f"{self.workdir}: run stage {self.stage} first"
            )
        found = read_json(path)
        if found.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"{path} is of another artifact, {found.get('fingerprint')}: delete {self.folder}, "
                "and a run makes it again"
            )
        if not isinstance(found.get("eval", {}), dict):
            raise ValueError(f"{path} is damaged: delete {self.folder}, and a run makes it again")
        return {name: value for name, value in found.items() if name not in ("fingerprint", FILES)}


def is_finished(artifact: Artifact) -> bool:
    """Whether it is finished; a damaged summary does not count, and is reported on the terminal."""
    try:
        artifact.summary()
    except FileNotFoundError:
        return False
    except ValueError as error:
        said = str(error).partition(": delete ")[0]
        console.print(f"{said}: {artifact.folder.name} is made again", soft_wrap=True)
        return False
    return True


def prepare_folder(artifact: Artifact, with_steps: bool = True) -> None:
    """Make a folder that holds config.json alone; what an interrupted run left in it is removed.

    With `with_steps` False, for training that resumes, the parameters in steps/ stay. Raises
    FileNotFoundError on a process that does not see the folder that process 0 made.
    """
    if jax.process_index() == 0:
        for path in artifact.folder.iterdir() if artifact.folder.exists() else ():
            if with_steps or path.name != STEPS:
                path.rmtree() if path.is_dir() else path.unlink()
        artifact.folder.mkdir(parents=True, exist_ok=True)
        write_description(artifact, artifact.folder)
    barrier(f"begin {artifact.folder.name}")
    if not artifact.folder.exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} does not see {artifact.folder} of process 0: give a "
            "workdir that all share, e.g. in a bucket"
        )


def write_description(artifact: Artifact, folder: epath.Path) -> None:
    """Write its config.json."""
    description = {"fingerprint": artifact.fingerprint, **artifact.describe(), **artifact.about}
    write_json(folder / "config.json", description)


def start_saving(artifact: Artifact, params: Params) -> None:
    """Start writing the parameters; `finish` waits for them."""
    param_checkpoint.save(artifact.folder / "params", params)


def mark_finished(artifact: Artifact, summary: Mapping[str, Any]) -> None:
    """Wait for the parameters, then mark the artifact as finished, atomically."""
    param_checkpoint.wait_until_saved()
    if jax.process_index() == 0:
        fsync_tree(artifact.folder)
        hashes = {
            file.name: hash_file(file) for file in artifact.folder.iterdir() if file.is_file()
        }
        marked = {**summary, "fingerprint": artifact.fingerprint, FILES: hashes}
        write_json(artifact.folder / "summary.json", marked)
    barrier(f"finish {artifact.folder.name}")


def save_artifact(
    artifact: Artifact, params: Params, scores: Mapping, lists: Mapping | None = None, **more: Any
) -> None:
    """Save the parameters and finish; costs that `more` does not give are 0."""
    start_saving(artifact, params)
    untrained = {"steps": 0, "tokens": 0, "flops": 0.0, "recovered": None}
    mark_finished(
        artifact, {**untrained, "eval": scores, **({LISTS: lists} if lists else {}), **more}
    )


def load_params(artifact: Artifact, lm: LM, mesh: Mesh) -> Params:
    """The parameters of a finished artifact, sharded over the mesh by the model's rules."""
    artifact.summary()
    return param_checkpoint.restore(artifact.folder / "params", lm, mesh)


def read_finished_model(artifact: epath.Path) -> dict[str, Any]:
    """The fields of a finished artifact's model.

    Raises FileNotFoundError where there is none and ValueError for one that is damaged.
    """
    if not (artifact / "summary.json").exists():
        raise FileNotFoundError(
            f"{artifact} holds no finished model: give a folder inside the workdir of a run"
        )
    return read_model_fields(artifact, f"delete {artifact}, and a run makes it again")


def barrier(name: str) -> None:
    """Barrier: wait until every process has called it with this name."""
    multihost_utils.sync_global_devices(name)


def read_model_fields(folder: epath.Path, otherwise: str) -> dict[str, Any]:
    """The fields of the model that a folder's config.json describes.

    Raises ValueError where it describes none; the message ends in `otherwise`, what to do then.
    """
    path = folder / "config.json"
    try:
        fields = read_json(path)["config"]["model"]
        return {"type": fields["type"], **fields}
    except (FileNotFoundError, KeyError, TypeError) as error:
        raise ValueError(f"{path} describes no model ({error!r}): {otherwise}") from error


def to_json(value: Any) -> Any:
    """A configuration as JSON: dataclasses and partials become dicts, functions their names.

    The defaults of a function's arguments are included, so that an edited default gives another
    fingerprint, and the object of a method.

    A dataclass field with metadata {"identity": False} is left out, and one with {"identity":
    "changed"}, which is newer than artifacts that lack it, where it has its default. A dataclass
    with a fingerprint, such as a tokenizer, is described by that alone: the path of its file does
    not matter. Numbers keep their type: 30.0 is not 30. Raises ValueError for what has no
    description: a function without a name or with values of where it was defined, and an object of
    any other type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fingerprint = getattr(value, "fingerprint", None)
        if fingerprint is not None:
            return {"type": type(value).__name__, "fingerprint": fingerprint}
        fields = {
            f.name: to_json(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if _is_stated(f, getattr(value, f.name))
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        called = to_json(value.func)
        called = called if isinstance(called, dict) else {"function": called}
        return {**called, "positional": to_json(value.args), **to_json(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if hasattr(value, "__qualname__"):
        return _function(value)
    if not isinstance(value, str | int | float | None):
        raise ValueError(
            f"{reprlib.repr(value)} is a setting, but nothing that files can state: give numbers, "
            "texts, tuples, functions, or a frozen dataclass"
        )
    return value


def omitted_defaults(value: Any) -> dict[str, Any]:
    """What a dataclass's description means where it leaves out a newer field: its default."""
    newer = (f for f in dataclasses.fields(value) if f.metadata.get("identity") == "changed")
    return {f.name: to_json(f.default) for f in newer}


def _is_stated(field: dataclasses.Field, value: Any) -> bool:
    """Whether a description has the field."""
    identity = field.metadata.get("identity", True)
    return value != field.default if identity == "changed" else identity


def _function(value: Any) -> Any:
    """The name of a function or class, with what it holds."""
    if value.__name__ == "<lambda>":
        raise ValueError(f"a lambda of {value.__module__} is a setting: give it a name, by def")
    name = f"{value.__module__}.{value.__qualname__}"
    if getattr(value, "__closure__", None):
        held = ", ".join(value.__code__.co_freevars)
        raise ValueError(
            f"{name} takes {held} from where it is defined, which its name does not tell: make "
            f"{held} an argument, and give it by partial(...)"
        )
    held = dict(getattr(value, "__kwdefaults__", None) or {})
    if given := getattr(value, "__defaults__", None):
        names = value.__code__.co_varnames[: value.__code__.co_argcount][-len(given) :]
        held |= dict(zip(names, given, strict=True))
    owner = getattr(value, "__self__", None)
    if owner is not None and not inspect.ismodule(owner):
        held["self"] = owner
    return {"function": name, "positional": [], **to_json(held)} if held else name


def _equal(value: Any) -> Any:
    """JSON in which equal numbers are written alike: 30.0 as 30."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _equal(item) for key, item in value.items()}
    return [_equal(item) for item in value] if isinstance(value, list) else value

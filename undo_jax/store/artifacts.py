"""Models on disk: what an artifact is, where it is stored, and when it is finished.

WORKDIR/STAGE-MODEL-seedN-FINGERPRINT/
    config.json     its description, and the fingerprints of the artifacts it was made from
    metrics.jsonl   its records
    steps/N/        snapshots: parameters after N steps, of an attack with `Attack.keep_at`
    params/         its parameters
    scores.json     numbers of score plug-ins, if some were computed; see `score_files`
    summary.json    written last, with hashes of the files beside it; an artifact without it, or
                    with another artifact's, is unfinished and is made again

Each process saves its shards of the parameters, process 0 all else; the others wait for it.
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
from jax.sharding import Mesh

from undo_jax.logs.log import console
from undo_jax.runtime.atomic_files import fsync_tree, hash_file, read_json, write_json
from undo_jax.runtime.processes import barrier
from undo_jax.store import param_checkpoint
from undo_jax.types import LM, Params

STEPS = "steps"  # the folder of snapshots
LISTS = "lists"  # key of a summary: numbers, of which other models have as many
FILES = "files"  # key of a summary: the hashes of the files beside it


@dataclass(frozen=True, eq=False)
class Artifact:
    """One model at one point of the pipeline, on disk or not. Equal descriptions share a folder."""

    workdir: epath.Path
    stage: str
    model: str  # its display name
    seed: int | None  # None if it uses no random numbers
    config: Any  # everything else that determines it; not the mesh, the log or a path
    upstream: tuple["Artifact", ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for config.json
    name: str | None = None  # of its folder; None derives it from the other fields

    def describe(self) -> dict[str, Any]:
        """Returns the artifact as JSON."""
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
        description = self.describe()
        description["config"] = _unify_numbers(description["config"])
        text = json.dumps(description, sort_keys=True)
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
        """Whether it has a valid summary of its own."""
        try:
            return bool(self.summary())
        except (FileNotFoundError, ValueError):
            return False

    def summary(self) -> dict[str, Any]:
        """Reads its summary. Raises FileNotFoundError without one, ValueError if it is damaged."""
        path = self.folder / "summary.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{self.stage} of {self.model}, seed {self.seed}, is not finished in "
                f"{self.workdir}: run stage {self.stage} first"
            )
        summary = read_json(path)
        fingerprint = summary.pop("fingerprint", None)
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"{path} is of another artifact, {fingerprint}: delete {self.folder}, "
                "and a run makes it again"
            )
        if not isinstance(summary.get("eval", {}), dict):
            raise ValueError(f"{path} is damaged: delete {self.folder}, and a run makes it again")
        summary.pop(FILES, None)
        return summary


def is_finished(artifact: Artifact, otherwise: str = "is made again") -> bool:
    """Returns whether an artifact is finished; of a damaged one it reports what is done instead."""
    try:
        artifact.summary()
    except FileNotFoundError:
        return False
    except ValueError as error:
        problem = str(error).partition(": delete ")[0]
        console.print(f"{problem}: {artifact.folder.name} {otherwise}", soft_wrap=True)
        return False
    return True


def prepare_folder(artifact: Artifact, remove_snapshots: bool = True) -> None:
    """Makes the artifact's folder with config.json alone; removes what an interrupted run left.

    `remove_snapshots` is False for training that resumes, which keeps the snapshots in steps/.
    Raises FileNotFoundError on a process that does not see the folder that process 0 made.
    """
    if jax.process_index() == 0:
        for path in artifact.folder.iterdir() if artifact.folder.exists() else ():
            if remove_snapshots or path.name != STEPS:
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
    """Writes the config.json of an artifact into a folder."""
    description = {"fingerprint": artifact.fingerprint, **artifact.describe(), **artifact.about}
    write_json(folder / "config.json", description)


def start_saving(artifact: Artifact, params: Params) -> None:
    """Starts writing the parameters; `mark_finished` waits for them."""
    param_checkpoint.save(artifact.folder / "params", params)


def mark_finished(artifact: Artifact, summary: Mapping[str, Any]) -> None:
    """Waits for the parameters, then writes summary.json, which marks the artifact as finished."""
    param_checkpoint.wait_until_saved()
    if jax.process_index() == 0:
        fsync_tree(artifact.folder)
        files = [file for file in artifact.folder.iterdir() if file.is_file()]
        hashes = {file.name: hash_file(file) for file in files}
        content = {**summary, "fingerprint": artifact.fingerprint, FILES: hashes}
        write_json(artifact.folder / "summary.json", content)
    barrier(f"finish {artifact.folder.name}")


def save_artifact(
    artifact: Artifact, params: Params, scores: Mapping, lists: Mapping | None = None, **fields: Any
) -> None:
    """Saves the parameters and the summary, which marks the artifact as finished.

    `lists` are numbers that are compared with those of other models, `fields` further fields of the
    summary; costs that are not given are 0.
    """
    start_saving(artifact, params)
    costs = {"steps": 0, "tokens": 0, "flops": 0.0, "recovered": None}
    compared = {LISTS: lists} if lists else {}
    mark_finished(artifact, {**costs, "eval": scores, **compared, **fields})


def load_params(artifact: Artifact, lm: LM, mesh: Mesh) -> Params:
    """Loads the parameters of a finished artifact, sharded over the mesh by the model's rules."""
    artifact.summary()
    return param_checkpoint.restore(artifact.folder / "params", lm, mesh)


def read_finished_model(artifact: epath.Path) -> dict[str, Any]:
    """Reads the fields of a finished artifact's model.

    Raises FileNotFoundError if the folder holds none and ValueError if it is damaged.
    """
    if not (artifact / "summary.json").exists():
        raise FileNotFoundError(
            f"{artifact} holds no finished model: give a folder inside the workdir of a run"
        )
    return read_model_fields(artifact, f"delete {artifact}, and a run makes it again")


def read_model_fields(folder: epath.Path, remedy: str) -> dict[str, Any]:
    """Reads the fields of the model that a folder's config.json describes.

    Raises ValueError if it describes none; the message ends in `remedy`.
    """
    path = folder / "config.json"
    try:
        fields = read_json(path)["config"]["model"]
        return {"type": fields["type"], **fields}
    except (FileNotFoundError, KeyError, TypeError) as error:
        raise ValueError(f"{path} describes no model ({error!r}): {remedy}") from error


def to_json(value: Any) -> Any:
    """Converts a configuration to JSON: dataclasses become dicts, functions their names.

    Partials become dicts, too. The defaults of a function's arguments are included, so that an
    edited default changes the fingerprint, and so is the object of a method.

    A dataclass field with metadata {"identity": False} is left out, and one with {"identity":
    "changed"}, which is newer than artifacts that lack it, where it has its default. A dataclass
    with a fingerprint, such as a tokenizer, is described by that alone: the path of its file does
    not matter. Numbers keep their type: 30.0 is not 30.

    Raises:
        ValueError: for a function without a name or with values of where it was defined, and for an
            object of any other type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fingerprint = getattr(value, "fingerprint", None)
        if fingerprint is not None:
            return {"type": type(value).__name__, "fingerprint": fingerprint}
        fields = {
            field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _is_included(field, getattr(value, field.name))
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        function = to_json(value.func)
        function = function if isinstance(function, dict) else {"function": function}
        return {**function, "positional": to_json(value.args), **to_json(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): to_json(element) for key, element in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(element) for element in value]
    if hasattr(value, "__qualname__"):
        return _function_to_json(value)
    if not isinstance(value, str | int | float | None):
        raise ValueError(
            f"a setting is {reprlib.repr(value)}, which cannot be written as JSON: give numbers, "
            "texts, tuples, functions, or a frozen dataclass"
        )
    return value


def omitted_defaults(value: Any) -> dict[str, Any]:
    """Returns the newer fields that a dataclass's JSON may leave out, with their defaults."""
    newer = (f for f in dataclasses.fields(value) if f.metadata.get("identity") == "changed")
    return {field.name: to_json(field.default) for field in newer}


def _is_included(field: dataclasses.Field, value: Any) -> bool:
    """Returns whether the JSON of a dataclass includes a field."""
    identity = field.metadata.get("identity", True)
    return value != field.default if identity == "changed" else identity


def _function_to_json(function: Any) -> Any:
    """Returns the name of a function or class, with its defaults and the object of a method."""
    if function.__name__ == "<lambda>":
        raise ValueError(f"a setting is a lambda of {function.__module__}: define it by def")
    name = f"{function.__module__}.{function.__qualname__}"
    if getattr(function, "__closure__", None):
        variables = ", ".join(function.__code__.co_freevars)
        raise ValueError(
            f"{name} takes {variables} from where it is defined, which its name does not tell: "
            f"make {variables} an argument, and give it by partial(...)"
        )
    values = dict(getattr(function, "__kwdefaults__", None) or {})
    if defaults := getattr(function, "__defaults__", None):
        code = function.__code__
        names = code.co_varnames[: code.co_argcount][-len(defaults) :]
        values |= dict(zip(names, defaults, strict=True))
    owner = getattr(function, "__self__", None)
    if owner is not None and not inspect.ismodule(owner):
        values["self"] = owner
    return {"function": name, "positional": [], **to_json(values)} if values else name


def _unify_numbers(value: Any) -> Any:
    """Returns JSON in which equal numbers are written alike: 30.0 as 30."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _unify_numbers(element) for key, element in value.items()}
    return [_unify_numbers(element) for element in value] if isinstance(value, list) else value

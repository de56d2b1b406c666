"""Models on disk: what an artifact is, when it is finished, and its parameters through Orbax.

WORKDIR/STAGE-MODEL-seedN-FINGERPRINT/
    config.json     what it is and what it was made from
    metrics.jsonl   its records
    params/         Orbax; plain dicts of arrays, no Flax type
    summary.json    written last: an artifact without it is unfinished and is made again

Several processes share a workdir. Each saves its own parts of the parameters; process 0 writes the
rest, and the others wait for it.

WORKDIR/progress-STAGE-FINGERPRINT/   of artifacts that are made together, until all are finished
    artifacts.json  their folders
    */              their training so far
"""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from undo_jax.sharding import path_name, placed
from undo_jax.types import LM, Params, shapes

PATIENCE = 60  # seconds that a run waits for another one to leave its workdir


@dataclass(frozen=True, eq=False)
class Artifact:
    """One model at one point of the pipeline, made or not. Equal descriptions share a folder."""

    workdir: epath.Path
    stage: str
    model: str  # its display name
    seed: int
    config: Any  # everything else that determines it; not the mesh, the log or a path
    upstream: tuple["Artifact", ...] = ()
    alpha: float | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for config.json
    name: str | None = None  # of its folder; None: from what it is

    def describe(self) -> dict[str, Any]:
        """The artifact as JSON."""
        return {
            "stage": self.stage,
            "model": self.model,
            "alpha": self.alpha,
            "seed": self.seed,
            "upstream": [artifact.fingerprint for artifact in self.upstream],
            "config": plain(self.config),
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of its description's hash: 1 and 1.0 are one setting."""
        described = self.describe()
        described["config"] = _equal(described["config"])
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def folder(self) -> epath.Path:
        if self.name is not None:
            return self.workdir / self.name
        slug = re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-")
        return self.workdir / f"{self.stage}-{slug}-seed{self.seed}-{self.fingerprint}"

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """Raises FileNotFoundError where the artifact is not finished, ValueError if damaged."""
        if not self.finished:
            raise FileNotFoundError(
                f"{self.stage} of {self.model}, seed {self.seed}, is not finished in "
                f"{self.workdir}: run stage {self.stage} first"
            )
        return read_json(self.folder / "summary.json")


def unfinished(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Those to be made: not finished, or to be finished again with others made beside them.

    Artifacts that train together are finished one after another. Where that was interrupted, all
    go on from their common progress, so that none is trained in other company than before. The
    progress of finished ones is removed.
    """
    here = _unfinished(artifacts)
    wanted = np.array([artifact.folder.name in here for artifact in artifacts], bool)
    if jax.process_count() > 1 and len(wanted):  # as process 0 sees it
        wanted = multihost_utils.broadcast_one_to_all(wanted)
    return [artifact for artifact, now in zip(artifacts, wanted, strict=True) if now]


def _unfinished(artifacts: Sequence[Artifact]) -> set[str]:
    """Names of the folders of those to be made, as this process sees it."""
    known = {artifact.folder.name: artifact for artifact in artifacts}
    wanted = {name for name, artifact in known.items() if not artifact.finished}
    for folder in _progress(artifacts):
        names = _names(folder)
        if names <= known.keys() and names & wanted:
            wanted |= names
        elif names <= known.keys():
            scatter(folder)
    return wanted


def gather(artifacts: Sequence[Artifact]) -> epath.Path:
    """The folder for the progress of artifacts made together; kept where it exists already.

    What other company left of any of them is removed: an artifact has one progress.
    """
    names = [artifact.folder.name for artifact in artifacts]
    text = json.dumps([artifact.fingerprint for artifact in artifacts])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = artifacts[0].workdir / f"progress-{artifacts[0].stage}-{digest}"
    if jax.process_index() == 0:
        _claim(absolute(artifacts[0].workdir))
        for other in _progress(artifacts):
            if other != folder and _names(other) & set(names):
                other.rmtree()
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "artifacts.json", names)
    wait(f"gather {folder.name}")
    return folder


def scatter(folder: epath.Path) -> None:
    """Remove the progress of artifacts that are finished."""
    if jax.process_index() == 0:
        folder.rmtree()


def begin(artifact: Artifact) -> None:
    """An empty folder with config.json; whatever an interrupted run left is removed.

    Raises FileNotFoundError on a process that does not see the folder that process 0 made.
    """
    if jax.process_index() == 0:
        _claim(absolute(artifact.workdir))
        if artifact.folder.exists():
            artifact.folder.rmtree()
        artifact.folder.mkdir(parents=True)
        description = {"fingerprint": artifact.fingerprint, **artifact.describe(), **artifact.about}
        (artifact.folder / "config.json").write_text(json.dumps(description, indent=1))
    wait(f"begin {artifact.folder.name}")
    if not artifact.folder.exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} does not see {artifact.folder} of process 0: give a "
            "workdir that all share, e.g. in a bucket"
        )


@functools.cache
def _claim(workdir: epath.Path) -> None:
    """Keep other processes from writing into a workdir, as long as this one lives.

    Only on file systems that know locks: not in buckets. Raises OSError where another process has
    it for longer than one takes that is about to end.
    """
    if "://" in os.fspath(workdir):
        return
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor, end = os.open(workdir, os.O_RDONLY), time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise OSError(
                    f"another process writes into {workdir}: wait until it has ended, or give "
                    "another workdir"
                ) from None
            time.sleep(0.2)
        except OSError:  # no locks here
            return os.close(descriptor)


def wait(name: str) -> None:
    """Until every process is at the point of this name."""
    multihost_utils.sync_global_devices(name)


def save(artifact: Artifact, params: Params) -> None:
    """Start writing the parameters; `finish` waits for them."""
    _checkpointer().save(absolute(artifact.folder / "params"), params)


def finish(artifact: Artifact, summary: Mapping[str, Any]) -> None:
    """Wait for the parameters, then mark the artifact as finished, atomically."""
    _checkpointer().wait_until_finished()
    if jax.process_index() == 0:
        _write_json(artifact.folder / "summary.json", summary)
    wait(f"finish {artifact.folder.name}")


def keep(artifact: Artifact, params: Params, scores: Mapping[str, float], **more: Any) -> None:
    """Save parameters and finish; what `more` does not say of the cost is that there was none."""
    save(artifact, params)
    untrained = {"steps": 0, "tokens": 0, "flops": 0.0, "recovered": None}
    finish(artifact, {**untrained, "eval": scores, **more})


def load(artifact: Artifact, lm: LM, mesh: Mesh) -> Params:
    """The parameters of a finished artifact, each placed on the mesh as the model's rules say."""
    artifact.summary()
    return restore(artifact.folder / "params", lm, mesh)


def write(path: epath.Path, params: Params) -> None:
    """Parameters alone, as an Orbax checkpoint that `restore` reads; complete on return.

    Raises FileExistsError where something is.
    """
    path = absolute(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: give a new folder")
    wait(f"write {path.name}")  # or one that comes late would find what the others have begun
    _checkpointer().save(path, params)
    _checkpointer().wait_until_finished()


def restore(path: epath.Path, lm: LM, mesh: Mesh) -> Params:
    """Parameters from an Orbax checkpoint.

    Raises FileNotFoundError where there is none and ValueError where it belongs to another model
    or cannot be read.
    """
    path = absolute(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path")
    wanted = shapes(lm)
    with _readable(path):
        metadata = _checkpointer().metadata(path).item_metadata
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
    target = placed(wanted, lm.rules, mesh)
    with _readable(path):
        return _checkpointer().restore(path, target)


@contextmanager
def _readable(path: epath.Path) -> Iterator[None]:
    """Orbax and TensorStore raise whatever they met, in many lines."""
    try:
        yield
    except Exception as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise ValueError(
            f"cannot read a checkpoint at {path}: {reason}; if it is damaged, delete the "
            "artifact that it belongs to, and a run makes that again"
        ) from error


def plain(value: Any) -> Any:
    """A configuration as JSON: dataclasses and partials become dicts, functions their names.

    A dataclass with a fingerprint, such as a tokenizer, stands for its content and not its fields:
    where its file lies does not matter. Numbers stay as they are: 30.0 is not 30. Raises ValueError
    for a function without a name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fingerprint = getattr(value, "fingerprint", None)
        if fingerprint is not None:
            return {"type": type(value).__name__, "fingerprint": fingerprint}
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        return {
            "function": plain(value.func),
            "positional": plain(value.args),
            **plain(value.keywords),
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if callable(value):
        if value.__name__ == "<lambda>":
            raise ValueError(f"a lambda of {value.__module__} is a setting: give it a name, by def")
        return f"{value.__module__}.{value.__qualname__}"
    return value


def _equal(value: Any) -> Any:
    """JSON in which equal numbers are written alike: whole ones as such."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _equal(item) for key, item in value.items()}
    return [_equal(item) for item in value] if isinstance(value, list) else value


def _progress(artifacts: Sequence[Artifact]) -> list[epath.Path]:
    """The folders of progress beside these artifacts."""
    workdirs = {artifact.workdir for artifact in artifacts}
    return [folder for workdir in workdirs for folder in workdir.glob("progress-*")]


def _names(progress: epath.Path) -> set[str]:
    """The artifacts that a folder of progress belongs to."""
    described = progress / "artifacts.json"
    return set(read_json(described)) if described.exists() else set()


def read_json(path: epath.Path) -> Any:
    """Raises ValueError for a file that is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete {path.parent}, and a run makes it again"
        ) from error


def _write_json(path: epath.Path, content: Any) -> None:
    """Whole or not at all."""
    written = path.with_name(f"{path.name}.tmp")
    written.write_text(json.dumps(content, indent=1))
    written.replace(path)


def absolute(path: epath.Path) -> epath.Path:
    """As Orbax demands; a path in a bucket is absolute already, and `resolve` would break it."""
    return path if "://" in os.fspath(path) else path.resolve()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


@functools.cache
def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer()

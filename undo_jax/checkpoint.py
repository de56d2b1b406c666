"""Models on disk: what an artifact is, when it is finished, and its parameters through Orbax.

WORKDIR/STAGE-MODEL-seedN-FINGERPRINT/
    config.json     what it is and what it was made from
    metrics.jsonl   its records
    params/         Orbax; plain dicts of arrays, no Flax type; with their digest
    summary.json    written last: an artifact without it, or with that of another, is unfinished and
                    is made again; it has the hashes of the files beside it

Several processes share a workdir. Each saves its own parts of the parameters; process 0 writes the
rest, and the others wait for it.

WORKDIR/progress-STAGE-FINGERPRINT/   of artifacts that are made together, until all are finished
    artifacts.json  their folders, and a name for this training
    */              their training so far
"""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from undo_jax import signals
from undo_jax.digest import digest
from undo_jax.durable import file_hash, flush, flush_all, read_json, remote, write_json, writing
from undo_jax.log import console
from undo_jax.sharding import path_name, placed
from undo_jax.types import LM, Params, shapes

PATIENCE = 60  # seconds that a run waits for another one to leave its workdir
DIGEST = "digest"  # of a checkpoint's arrays, in its metadata
FILES = "files"  # in a summary: the hashes of the files beside it


@dataclass(frozen=True, eq=False)
class Artifact:
    """One model at one point of the pipeline, made or not. Equal descriptions share a folder."""

    workdir: epath.Path
    stage: str
    model: str  # its display name
    seed: int | None  # None: no random number enters it
    config: Any  # everything else that determines it; not the mesh, the log or a path
    upstream: tuple["Artifact", ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for config.json
    name: str | None = None  # of its folder; None: from what it is

    def describe(self) -> dict[str, Any]:
        """The artifact as JSON."""
        return {
            "stage": self.stage,
            "model": self.model,
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
        slug = re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-")[:100]
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return self.workdir / f"{self.stage}-{slug}{seed}-{self.fingerprint}"

    @property
    def finished(self) -> bool:
        """Whether its summary is there, whole, and its own."""
        try:
            return bool(self.summary())
        except (FileNotFoundError, ValueError):
            return False

    def summary(self) -> dict[str, Any]:
        """Raises FileNotFoundError where the artifact is not finished, ValueError if damaged."""
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
        return {name: value for name, value in found.items() if name not in ("fingerprint", FILES)}


def kept(artifact: Artifact) -> bool:
    """Whether it is finished; a damaged summary, which does not count, is told of."""
    try:
        artifact.summary()
    except FileNotFoundError:
        return False
    except ValueError as error:
        said = str(error).partition(": delete ")[0]
        console.print(f"{said}: {artifact.folder.name} is made again", soft_wrap=True)
        return False
    return True


def gather(artifacts: Sequence[Artifact]) -> epath.Path:
    """The folder for the progress of artifacts made together; kept where it exists already."""
    names = [artifact.folder.name for artifact in artifacts]
    text = json.dumps([artifact.fingerprint for artifact in artifacts])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = artifacts[0].workdir / f"progress-{artifacts[0].stage}-{digest}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        listed = {"artifacts": names, "training": training(folder) or secrets.token_hex(4)}
        write_json(folder / "artifacts.json", listed)
    wait(f"gather {folder.name}")
    return folder


def training(folder: epath.Path) -> str:
    """A name for the training that has this progress, and for no other; none before it begins."""
    described = folder / "artifacts.json"
    return read_json(described).get("training", "") if described.exists() else ""


def companies(workdir: epath.Path) -> list[list[str]]:
    """The folders of artifacts whose training was interrupted, those together that trained so."""
    return [_listed(folder) for folder in sorted(workdir.glob("progress-*"))]


def clear(workdir: epath.Path) -> None:
    """Remove the progress of artifacts that are all finished."""
    if jax.process_index() == 0:
        for folder in workdir.glob("progress-*"):
            if all((workdir / name / "summary.json").exists() for name in _names(folder)):
                folder.rmtree()


def scatter(folder: epath.Path) -> None:
    """Remove the progress of artifacts that are finished."""
    if jax.process_index() == 0:
        folder.rmtree()


def begin(artifact: Artifact) -> None:
    """An empty folder with config.json; whatever an interrupted run left is removed.

    Raises FileNotFoundError on a process that does not see the folder that process 0 made.
    """
    if jax.process_index() == 0:
        if artifact.folder.exists():
            artifact.folder.rmtree()
        artifact.folder.mkdir(parents=True)
        description = {"fingerprint": artifact.fingerprint, **artifact.describe(), **artifact.about}
        write_json(artifact.folder / "config.json", description)
    wait(f"begin {artifact.folder.name}")
    if not artifact.folder.exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} does not see {artifact.folder} of process 0: give a "
            "workdir that all share, e.g. in a bucket"
        )


@contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Keep other runs from writing into a workdir: from here on, as long as this process lives.

    To be entered before anything there is looked at. A block that fails leaves no empty folder
    behind. Only on file systems that know locks: not in buckets. Raises OSError, on every process
    of this run, where another one has it for longer than one takes that is about to end.
    """
    workdir = absolute(workdir)
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    taken = jax.process_index() == 0 and _taken(workdir)
    if jax.process_count() > 1:
        taken = bool(multihost_utils.broadcast_one_to_all(np.array(taken)))
    if taken:
        raise OSError(
            f"another process writes into {workdir}: wait until it has ended, or give another "
            "workdir"
        )
    try:
        yield
    except BaseException:
        if jax.process_index() == 0 and not remote(workdir):
            with suppress(OSError):  # it holds something, or is gone
                for folder in missing:
                    os.rmdir(folder)
        raise


def _taken(workdir: epath.Path) -> bool:
    """Whether another process holds a workdir, after some patience; if none does, this one does."""
    end = time.monotonic() + PATIENCE
    while not remote(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            found = os.stat(workdir)
            _hold(workdir, found.st_dev, found.st_ino)
            break
        except (BlockingIOError, FileNotFoundError):
            if time.monotonic() > end:
                return True
            time.sleep(0.2)
    return False


@functools.cache
def _hold(workdir: epath.Path, device: int, inode: int) -> None:
    """Lock this very folder. Raises BlockingIOError where another process has, or it is not there.

    One that failed may have removed it meanwhile, and another one made it anew.
    """
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # open, and so held, from here on
        found = os.stat(workdir)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:  # no locks here
        os.close(descriptor)


def wait(name: str) -> None:
    """Until every process is at the point of this name."""
    multihost_utils.sync_global_devices(name)


def save(artifact: Artifact, params: Params) -> None:
    """Start writing the parameters; `finish` waits for them."""
    _save(artifact.folder / "params", params)


def _save(path: epath.Path, params: Params) -> None:
    _checkpointer().save(absolute(path), params, custom_metadata={DIGEST: digest(params)})


def finish(artifact: Artifact, summary: Mapping[str, Any]) -> None:
    """Wait for the parameters, then mark the artifact as finished, atomically."""
    _checkpointer().wait_until_finished()
    if jax.process_index() == 0:
        flush_all(artifact.folder)
        hashes = {
            file.name: file_hash(file) for file in artifact.folder.iterdir() if file.is_file()
        }
        marked = {**summary, "fingerprint": artifact.fingerprint, FILES: hashes}
        write_json(artifact.folder / "summary.json", marked)
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
    with writing(path.parent):
        _save(path, params)
        _checkpointer().wait_until_finished()
        if jax.process_index() == 0:
            flush_all(path)
            flush(path.parent)


def restore(path: epath.PathLike, lm: LM, mesh: Mesh) -> Params:
    """Parameters from an Orbax checkpoint, held against the digest that `save` gave them.

    Raises FileNotFoundError where there is none and ValueError where it belongs to another model,
    cannot be read, or holds other parameters than were saved.
    """
    path = absolute(epath.Path(path))
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
    target = placed(wanted, lm.rules, mesh)
    if known:  # it is of the arrays as they were saved
        target = jax.tree.map(lambda x, saved: x.update(dtype=saved.dtype), target, metadata.tree)
    with _readable(path):
        params = _checkpointer().restore(path, target)
        if known and digest(params) != known:
            raise ValueError("its parameters are not those that were saved")
    return jax.tree.map(lambda x, want: x.astype(want.dtype), params, wanted)


@contextmanager
def _readable(path: epath.Path) -> Iterator[None]:
    """Orbax and TensorStore raise whatever they met, in many lines."""
    try:
        yield
    except Exception as error:
        signals.reraise()
        reason = str(error.__cause__ or error).split("\n")[0]
        remedy = f"delete {path.parent}, and a run makes it again"
        raise ValueError(
            f"cannot read a checkpoint at {path}: {reason}; if it is damaged, "
            f"{remedy if path.name == 'params' else 'copy or import it again'}"
        ) from error


def plain(value: Any) -> Any:
    """A configuration as JSON: dataclasses and partials become dicts, functions their names.

    A function with defaults of keyword-only arguments is a partial that gives them: that one is
    edited is seen.

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
        called = plain(value.func)
        called = called if isinstance(called, dict) else {"function": called}
        return {**called, "positional": plain(value.args), **plain(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if callable(value):
        if value.__name__ == "<lambda>":
            raise ValueError(f"a lambda of {value.__module__} is a setting: give it a name, by def")
        name = f"{value.__module__}.{value.__qualname__}"
        defaults = getattr(value, "__kwdefaults__", None)
        return {"function": name, "positional": [], **plain(defaults)} if defaults else name
    return value


def _equal(value: Any) -> Any:
    """JSON in which equal numbers are written alike: whole ones as such."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _equal(item) for key, item in value.items()}
    return [_equal(item) for item in value] if isinstance(value, list) else value


def _names(progress: epath.Path) -> set[str]:
    return set(_listed(progress))


def _listed(progress: epath.Path) -> list[str]:
    """The artifacts that a folder of progress belongs to, in the order in which they train."""
    described = progress / "artifacts.json"
    names = read_json(described).get("artifacts") if described.exists() else []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{described} lists no artifacts: delete {progress}, and a run trains them again"
        )
    return names


def absolute(path: epath.Path) -> epath.Path:
    """As Orbax demands; a path in a bucket is absolute already, and `resolve` would break it."""
    return path if remote(path) else path.resolve()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


@functools.cache
def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer()

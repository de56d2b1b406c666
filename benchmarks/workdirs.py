"""Small runs, each in a process of its own, and whether two workdirs hold the same."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from operator import eq
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parent.parent
HOOK = ROOT / "benchmarks" / "hook"
EXPERIMENT = str(ROOT / "experiments" / "quickstart.py")
TRAINED = ("pretrain", "unlearn", "distill", "relearn")
SMALL = (
    "--seeds 0 1 --noise.alphas 0.5 --distill.no-stop-early --relearn.learning-rates 0.01 "
    "--saving.every 2 --saving.minutes 0 --setting.problems 200 --setting.questions 2 "
    "--setting.validation-rows 1 --setting.row-length 12 "
    + " ".join(
        f"--{stage}.training.steps 8 --{stage}.training.eval-every 4 "
        f"--{stage}.training.batch-size 4 --{stage}.training.optimizer.epsilon 1e-3"
        for stage in TRAINED
    )
).split()  # fmt: skip
TIMEOUT = 300  # seconds that a command may take
UNLIKE = {
    "tokens_per_second",
    "files",
    "sha256",
    "runs",
}  # keys of JSON that are not the same twice
COMMANDS = rb"(?s)<h2>How it was made</h2>.*?(?=<details>)"  # of a report's page
USUAL = (  # lines on stderr
    r"tok/s|\[Gloo\]|: starts, \d+ steps$|goes on from step|stopping after the next save|^\s*$"
)


class Done(NamedTuple):
    """How a command ended; `lines` are those on stderr besides its progress."""

    status: int
    out: str
    stderr: str
    lines: list[str]
    seconds: float

    def ended_with(self, status: int, about: str = "") -> bool:
        """Whether it ended so, with one line, alone, that holds this."""
        return self.status == status and len(self.lines) == 1 and about in self.lines[0]

    def __str__(self) -> str:
        return f"status {self.status}: {self.stderr[-1500:]}"


class Running(NamedTuple):
    """A command in a process of its own."""

    process: subprocess.Popen[str]
    out: IO[str]
    err: IO[str]
    began: float

    def end(self) -> Done:
        """Wait for it; one that takes too long is killed."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(TIMEOUT)
        late = self.process.poll() is None
        self.process.kill()
        status = self.process.wait()
        with self.out, self.err:
            out, stderr = (file.seek(0) or file.read() for file in (self.out, self.err))
        stderr += f"\nno end after {TIMEOUT} s" * late
        lines = [line for line in stderr.splitlines() if not re.search(USUAL, line)]
        return Done(status, out, stderr, lines, time.monotonic() - self.began)


_lock = threading.RLock()


@dataclass(frozen=True)
class Bench:
    """Where trials take place. `words` are added to every run, e.g. `--stage pretrain`."""

    folder: Path
    words: tuple[str, ...] = ()

    def start(self, *command: Any, fault: Any = None) -> Running:
        """A command of undo-jax."""
        environment = {
            **os.environ,
            "COLUMNS": "200",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "UNDO_JAX_CACHE": os.environ.get("UNDO_JAX_CACHE", str(self.folder / "cache")),
            "PYTHONPATH": f"{HOOK}{os.pathsep}{ROOT}",
            **({"FAULT": json.dumps(fault)} if fault else {}),
        }
        words = [sys.executable, "-m", "undo_jax", *command]
        out, err = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
        )
        return Running(process, out, err, time.monotonic())

    def run(self, workdir: Path, *more: str, fault: Any = None) -> Running:
        """A run into a workdir."""
        command = "run", EXPERIMENT, "--workdir", workdir, *SMALL, *self.words
        return self.start(*command, *more, fault=fault)

    def pair(self, workdir: Path) -> list[Running]:
        """A run in two processes."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            at = f"localhost:{free.getsockname()[1]}"
        job = "--mesh", "data=2", "--coordinator", at, "--processes", "2", "--process"
        return [self.run(workdir, *job, str(process)) for process in (0, 1)]

    def once(self, name: str, make: Callable[[Path], list[Done]], status: int = 0) -> Path:
        """A folder of this name, made where it is not there yet."""
        with _lock:
            folder, half = self.folder / name, self.folder / f"{name}.half"
            if not folder.exists():
                shutil.rmtree(half, ignore_errors=True)
                for done in make(half):
                    assert done.status == status, f"the undisturbed run failed: {done}"
                half.rename(folder)
            return folder

    @cached_property
    def quiet(self) -> Path:
        """The workdir of an undisturbed run."""
        return self.once("quiet", lambda workdir: [self.run(workdir).end()])

    @cached_property
    def quiet_pair(self) -> Path:
        """The workdir of an undisturbed run of two processes."""
        return self.once("pair", lambda workdir: [run.end() for run in self.pair(workdir)])

    @cached_property
    def size(self) -> tuple[int, int, float]:
        """Of an undisturbed run: file operations outside and inside its workdir, and seconds."""
        quiet, note = self.quiet, self.folder / "size.json"

        def make(workdir: Path) -> list[Done]:
            done = self.run(workdir, fault=[0, f"{workdir}/", 0, str(note)]).end()
            note.write_text(json.dumps([*json.loads(note.read_text()), done.seconds]))
            return [done]

        again = self.once("again", make)
        assert not (differing := differences(again, quiet)), (
            f"two undisturbed runs differ: {differing}"
        )
        return tuple(json.loads(note.read_text()))

    def interrupted(self, stage: str) -> Path:
        """A workdir whose run was killed in the training of a stage that had two saves."""

        def make(workdir: Path) -> list[Done]:
            third = rf"{workdir}/progress-{stage}-.*/6"
            return [self.run(workdir, fault=[9, third, 1, f"{workdir}.mark"]).end()]

        return self.once(f"interrupted-{stage}", make, status=-9)


# What a run has made


def read_results(workdir: Path) -> dict[str, Any]:
    """All that is the same twice: arrays as bytes, JSON as values, the report's files."""
    results: dict[str, Any] = {"folders": sorted(path.name for path in workdir.iterdir())}
    results |= {
        str(path.relative_to(workdir)): read_arrays(path) for path in workdir.glob("*/params")
    }
    for pattern in ("*.json", "*/config.json", "*/summary.json", "*/metrics.jsonl"):
        for path in workdir.glob(pattern):
            text = path.read_text(errors="replace")
            parts = text.splitlines() if path.suffix == ".jsonl" else [text]
            results[str(path.relative_to(workdir))] = [parsed(part) for part in parts]
    return results | reported(workdir)


def reported(workdir: Path) -> dict[str, bytes]:
    """The report's files, without the commands that made it and their dates."""
    files = (path for path in workdir.glob("report-*/**/*") if path.is_file())
    contents = {str(path.relative_to(workdir)): path.read_bytes() for path in files}
    return {name: re.sub(COMMANDS, b"", content) for name, content in contents.items()}


def read_arrays(path: Path) -> Any:
    """Each array's type, shape and bytes, as Orbax alone reads them."""
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    try:
        with _lock, ocp.StandardCheckpointer() as checkpointer:
            like = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place),
                checkpointer.metadata(path).item_metadata.tree,
            )
            leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(path, like))
        return {str(name): (str(x.dtype), x.shape, np.asarray(x).tobytes()) for name, x in leaves}
    except Exception as error:  # Orbax and TensorStore raise whatever they met
        return f"unreadable: {error}"


def parsed(text: str) -> Any:
    """A JSON value without speeds and hashes, which are of files that hold speeds."""
    with suppress(ValueError):
        value = json.loads(text)
        return {k: v for k, v in value.items() if k not in UNLIKE} if type(value) is dict else value
    return text


def differences(ours: Path, theirs: Path, alike: Callable[[Any, Any], bool] = eq) -> set[str]:
    """The names of what two workdirs do not have in common."""
    a, b = read_results(ours), read_results(theirs)
    return {name for name in a.keys() | b.keys() if not alike(a.get(name), b.get(name))}


def near(a: Any, b: Any) -> bool:
    """Whether two results are the same but for their last bits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, tuple) and isinstance(b, tuple):  # an array
        x, y = (np.frombuffer(content, kind) for kind, _, content in (a, b))
        return a[:2] == b[:2] and np.allclose(x, y, rtol=0, atol=1e-4)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 1e-3
    return a == b

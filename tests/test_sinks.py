"""Sinks: what TensorBoard and Weights & Biases read of a run, and one that a stranger has written.

A new sink needs no edit here, if equal records give equal files; else it needs a reader in
`READERS`.

Runs are commands in fresh processes. What they should have logged is what is in metrics.jsonl.
"""

import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

import undo_jax
from undo_jax import sinks
from undo_jax.cli import experiment_flags
from undo_jax.cli import main as cli
from undo_jax.logs.log import open_log
from undo_jax.logs.sink import Target
from undo_jax.runner import experiment as runner_experiment
from undo_jax.runner.load_experiment import load
from undo_jax.sinks.jsonl import jsonl
from undo_jax.store.artifacts import Artifact
from undo_jax.store.progress_folders import (
    make_progress_folder,
    read_training_name,
    remove_progress,
)

PACKAGE = Path(undo_jax.__file__).parent
NAMES = [module.name for module in pkgutil.iter_modules(sinks.__path__)]
EXPERIMENT = """
from undo_jax.attacks.forget import forget
from undo_jax.data.arithmetic import Grammar
from undo_jax.runner.experiment import Experiment
from undo_jax.models.gemma2 import preset
from undo_jax.training.optim import AdamW
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.train_step import Training

grammar = Grammar(12, 9, spaced=False, held_out=0.0)
small = {"examine": "train_facts", "questions": 2, "validation_rows": 1}
experiment = Experiment(
    name="toy",
    setting=Arithmetic(grammar, ("equation",), problems=200, row_length=12, **small),
    models={"base": Pretrain(preset("tiny", layers=1), Training(40, 8, AdamW(), 20))},
    attacks=(forget(Training(20, 8, AdamW(), 10), (1e-3, 1e-2)),),
    seeds=(0, 1),
    saving=CheckpointPolicy(every=10, minutes=0),
)
"""
TSV = '''
"""Losses as tab-separated values."""

from contextlib import contextmanager


@contextmanager
def tsv(target):
    with (target.folder / "losses.tsv").open("w") as file:

        def write(tags, fields):
            if "loss" in fields:
                print(fields["step"], *tags.values(), fields["loss"], sep="\\t", file=file)

        yield write
'''
STOPPED = """
import os, signal
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from undo_jax.sinks.tensorboard import tensorboard
from undo_jax.sinks.wandb import wandb


@contextmanager
def stop(target):
    kind = target.folder.name.partition("-")[0]
    number, at = {"pretrain": (signal.SIGKILL, 30), "relearn": (signal.SIGTERM, 10)}[kind]

    def write(tags, fields):
        if fields["step"] == at and "loss" in fields and not Path(kind).exists():
            Path(kind).touch()
            os.kill(os.getpid(), number)

    yield write


experiment = replace(experiment, sinks=(tensorboard, partial(wandb, project="mine"), stop))
"""


def _run(folder, *flags, package=PACKAGE, **environment):
    """The status and the standard error of a run of folder/toy.py."""
    alone = {n: value for n, value in os.environ.items() if not n.startswith(("WANDB", "NETRC"))}
    alone |= {"PYTHONPATH": str(package.parent), "HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "undo_jax", "run", "toy.py", "--workdir", "out", *flags]
    done = subprocess.run(
        command, env=alone | environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The workdir of a run with all sinks, and with one that is a new file in a copy of ours."""
    folder = tmp_path_factory.mktemp("sinks")
    (folder / "toy.py").write_text(EXPERIMENT)
    copy = folder / "fork" / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "sinks" / "tsv.py").write_text(TSV)
    status, said = _run(folder, "--sinks", *NAMES, "tsv", package=copy, WANDB_MODE="offline")
    assert status == 0 and "wandb: " not in said, said  # the terminal stays ours
    return folder / "out"


def _members(workdir):
    """The folder of each artifact's logs, and for each set of tags the rest of its records."""
    for path in sorted(workdir.glob("*/metrics.jsonl")):
        members = {}
        for line in path.read_text().splitlines():
            record = json.loads(line)
            tags = {n: record.pop(n) for n in ("attack", "learning_rate") if n in record}
            name = ",".join(f"{n}={value}" for n, value in tags.items())
            members.setdefault(name, (tags, []))[1].append(record)
        yield path.parent, members


def _flat(record):
    """A record's numbers by their names on a chart."""
    scores = {f"eval/{name}": score for name, score in record.get("eval", {}).items()}
    return {n: value for n, value in record.items() if n not in ("step", "eval")} | scores


def _check_members(workdir):
    """That the run was as it should be: what the sinks are held against."""
    found = list(_members(workdir))
    kinds = Counter((folder.name.partition("-")[0], len(members)) for folder, members in found)
    assert kinds == {("pretrain", 1): 2, ("relearn", 2): 2}
    for folder, members in found:
        last = 40 if folder.name.startswith("pretrain") else 20
        for _, records in members.values():
            steps = [record["step"] for record in records if "loss" in record]
            assert steps == [1, *range(10, last + 1, 10)]
    return found


def _series(folder):
    """What TensorBoard shows of a folder: the steps and values of each chart."""
    shown = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def _check_tensorboard(workdir):
    for folder, members in _check_members(workdir):
        shown = workdir / "tensorboard" / folder.name
        runs = {str(path.parent.relative_to(shown)) for path in shown.rglob("events.*")}
        assert runs == {name or "." for name in members}
        for name, (_, records) in members.items():
            expected = {}
            for record in records:
                for tag, value in _flat(record).items():
                    expected.setdefault(tag, []).append((record["step"], np.float32(value)))
            assert _series(shown / name) == expected
            assert "loss" in expected and "eval/forget" in expected


class Run(NamedTuple):
    """What W&B has of a run: its history row after row."""

    id: str
    project: str
    group: str
    stage: str
    name: str
    config: dict
    rows: list


def _offline(workdir):
    """The runs in W&B's files."""
    for path in workdir.glob("*/wandb/offline-run-*/*.wandb"):
        records = list(_records(path.read_bytes()))
        (run,) = (record.run for record in records if record.HasField("run"))
        rows = [_values(record.history.item) for record in records if record.HasField("history")]
        config = _values(run.config.update)
        yield Run(
            run.run_id, run.project, run.run_group, run.job_type, run.display_name, config, rows
        )


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content):
    """The records of W&B's file: LevelDB's log format, after seven bytes of a head."""
    assert content[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def _check_wandb(runs, workdir, project):
    """That there is one run for each member, with each of its records once."""
    left = list(runs)
    assert len({run.id for run in left}) == len(left)
    for folder, members in _check_members(workdir):
        described = json.loads((folder / "config.json").read_text())
        for tags, records in members.values():
            config = {**described, **tags}.items()
            (run,) = (run for run in left if config <= run.config.items())
            left.remove(run)
            assert run[1:4] == (project, "toy", described["stage"])
            assert run.name.startswith(folder.name)
            shown = [{n: v for n, v in row.items() if n[0] != "_"} for row in run.rows]
            assert shown == [{"step": record["step"], **_flat(record)} for record in records]
            assert [row["_step"] for row in run.rows] == list(range(len(records)))
    assert not left


def _read_jsonl(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _read_tensorboard(folder):
    (path,) = {path.parent for path in Path(folder.parent / "tensorboard").rglob("events.*")}
    steps = {}
    for tag, points in _series(path).items():
        for step, value in points:
            steps.setdefault(step, {"step": step})[tag] = value
    return list(steps.values())


def _read_wandb(folder):
    (run,) = _offline(folder.parent)
    return [{n: value for n, value in row.items() if n[0] != "_"} for row in run.rows]


def _read_files(folder):
    root = Path(folder).parent
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


READERS = {"jsonl": _read_jsonl, "tensorboard": _read_tensorboard, "wandb": _read_wandb}  # by sink
RECORDS = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5, "eval": {"forget": 0.25}}]


@pytest.mark.parametrize("name", NAMES)
def test_a_sink_is_one_context_manager_named_like_its_file(name):
    module = importlib.import_module(f"undo_jax.sinks.{name}")
    functions = [f for f in vars(module).values() if inspect.isfunction(f)]
    public = [f for f in functions if f.__module__ == module.__name__ and f.__name__[0] != "_"]
    assert [f.__name__ for f in public] == [name]
    assert inspect.isgeneratorfunction(inspect.unwrap(public[0]))  # made by @contextmanager
    target, *options = inspect.signature(public[0]).parameters.values()
    assert target.name == "target"
    assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options)


def _record(name, root, records, tags, *, interrupted=False):
    """Writes records into a new folder of an artifact. Returns the folder."""
    folder = epath.Path(root) / "pretrain-base"
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"stage": "pretrain"}')
    target = Target(folder, [tags], "toy", "training")
    with suppress(KeyboardInterrupt), sinks.find_sink(name)(target) as write:
        for record in records:
            write(tags, record)
        if interrupted:
            raise KeyboardInterrupt
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "wandb")) for n in NAMES]
)
def test_a_sink_has_each_record_once_after_a_resumption(name, tmp_path, monkeypatch):
    """The artifact's folder is made anew then, and all records come again."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    resumed = tmp_path / "resumed"
    _record(name, resumed, RECORDS[:1], {}, interrupted=True)
    folder = _record(name, resumed, RECORDS, {})
    if name in READERS:
        flat = [{"step": record["step"], **_flat(record)} for record in RECORDS]
        assert READERS[name](folder) == (RECORDS if name == "jsonl" else flat)
    else:
        at_once = _record(name, tmp_path / "at_once", RECORDS, {})
        assert _read_files(folder) == _read_files(at_once), "a resumption leaves other files"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READERS] or ["jsonl"])
def test_files_tell_records_and_trials_apart(name, tmp_path):
    cases = {"none": ([], 0.1), "one": (RECORDS[:1], 0.1), "other trial": (RECORDS[:1], 0.2)}
    files = [
        _read_files(_record(name, tmp_path / case, records, {"learning_rate": rate}))
        for case, (records, rate) in cases.items()
    ]
    assert files[0] != files[1], "write(tags, fields) writes nothing"
    assert files[1] != files[2], "write(tags, fields) drops its tags: trials cannot be told apart"


@pytest.mark.slow
def test_tensorboard_reads_every_record(ran):
    _check_tensorboard(ran)


@pytest.mark.slow
def test_wandb_reads_every_record(ran):
    _check_wandb(_offline(ran), ran, "undo-jax")


@pytest.mark.slow
def test_a_strangers_sink_is_one_new_file(ran):
    for folder, members in _check_members(ran):
        rows = [line.split("\t") for line in (folder / "losses.tsv").read_text().splitlines()]
        expected = [
            [str(record["step"]), *map(str, tags.values()), str(record["loss"])]
            for tags, records in members.values()
            for record in records
            if "loss" in record
        ]
        assert sorted(rows) == sorted(expected)


@pytest.mark.slow
def test_sinks_make_no_other_artifacts(ran, monkeypatch):
    """Without them, all is there already."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(ran.parent)
    before = {path: path.stat().st_mtime_ns for path in ran.glob("*/*.json*")}
    cli.main(["run", "toy.py", "--workdir", "out"])
    assert before == {path: path.stat().st_mtime_ns for path in ran.glob("*/*.json*")}


def test_flags_leave_the_sinks_of_a_file_alone():
    """They are no scalars; and `--sinks` without a name would take them all away."""
    shipped = load(str(PACKAGE.parent / "experiments" / "quickstart.py"))
    given = (sinks.find_sink("tensorboard"), partial(sinks.find_sink("wandb"), project="mine"))
    changed = experiment_flags.override(
        replace(shipped, sinks=given), ["--seeds", "3"]
    ).experiment()
    assert (changed.sinks, changed.seeds) == (given, (3,))


@pytest.mark.parametrize("named", [(), ("wandb",), ("tensorboard", "wandb", "tensorboard")])
def test_sinks_that_flags_name_come_beside_those_of_the_file(named, tmp_path, monkeypatch):
    """One that is in both is there once, as the file has it."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    ran = []
    monkeypatch.setattr(runner_experiment, "run", lambda *given: ran.append(given[0]))
    more = "def own(target): ...\n\n\nsinks = (partial(wandb, project='mine'), own)\n"
    path = tmp_path / "toy.py"
    path.write_text(EXPERIMENT + STOPPED.partition("@contextmanager")[0] + more
                    + "experiment = replace(experiment, sinks=sinks)\n")  # fmt: skip
    flags = ("--sinks", *named) if named else ()
    cli.main(["run", str(path), "--stage", "pretrain", *flags])
    wandb, own, *further = ran[0].sinks
    assert (wandb.keywords, own.__name__) == ({"project": "mine"}, "own")
    assert further == [sinks.find_sink("tensorboard")] * ("tensorboard" in named)


class Server(BaseHTTPRequestHandler):
    """Answers W&B's client as far as it asks here, and keeps the rows that it sends."""

    protocol_version = "HTTP/1.1"
    runs: ClassVar = {}  # id -> the client's description, and its rows as text

    def do_POST(self):  # noqa: N802
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/graphql":
            asked = json.loads(sent)
            name = re.search(r"(?:query|mutation) (\w+)", asked["query"])[1]
            answer = getattr(self, name, lambda **_: {})
            return self._answer({"data": answer(**(asked.get("variables") or {}))})
        if self.path.endswith("/file_stream"):
            rows = self.runs[self.path.split("/")[-2]][1]
            if new := json.loads(sent).get("files", {}).get("wandb-history.jsonl"):
                rows[new["offset"] :] = new["content"]
        self._answer({})

    do_PUT = do_POST  # noqa: N815

    def _answer(self, content):
        body = json.dumps(content).encode()
        with suppress(ConnectionError):  # of a client that was killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass

    def Viewer(self):  # noqa: N802
        return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}

    def RunResumeStatus(self, name, project, **_):  # noqa: N802
        found = {"name": project, "entity": {"name": "me"}, "bucket": None}
        if name in self.runs:
            rows = self.runs[name][1]
            tail = {"historyTail": json.dumps(rows[-1:]), "historyLineCount": len(rows)}
            empty = {"eventsTail": "[]", "eventsLineCount": 0, "logLineCount": 0, "config": "{}"}
            known = {"summaryMetrics": "{}", "wandbConfig": '{"t": {"value": 1}}'}
            found["bucket"] = {"name": name, **tail, **empty, **known}
        return {"model": found}

    def UpsertBucket(self, name, **described):  # noqa: N802
        known, _ = self.runs.setdefault(name, ({}, []))
        known |= {n: value for n, value in described.items() if value is not None}
        project = {"name": known["project"], "entity": {"name": "me"}}
        return {"upsertBucket": {"bucket": {"id": "1", "name": name, "project": project}}}

    def CreateRunFiles(self, files, **_):  # noqa: N802
        url = f"http://{self.headers['Host']}"
        made = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in files]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": made}}


@pytest.fixture
def server():
    """Its address."""
    Server.runs.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def _online():
    """The runs of the server."""
    for name, (known, rows) in Server.runs.items():
        config = {n: part["value"] for n, part in json.loads(known["config"]).items()}
        about = (known[n] for n in ("project", "groupName", "jobType", "displayName"))
        yield Run(name, *about, config, list(map(json.loads, rows)))


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_what_goes_on_is_one_run_with_each_record_once(online, server, tmp_path):
    """Killed in one stage and preempted in the next, with sinks of the experiment's own file."""
    (tmp_path / "toy.py").write_text(EXPERIMENT + STOPPED)
    environment = {"WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40}
    environment |= {} if online else {"WANDB_MODE": "offline"}
    watched, ids, told = {}, set(), []
    for expected in (-9, 75, 0):
        status, said = _run(tmp_path, **environment)
        assert status == expected, said
        told.append("goes on from step" in said)
        assert "WARN" not in said
        for folder in {path.parent for path in tmp_path.glob("out/tensorboard/**/events.*")}:
            shown = watched.setdefault(folder, EventAccumulator(str(folder)))
            shown.Reload()  # as a server does that goes on watching
        ids |= {path.name.split("-", 3)[3] for path in tmp_path.glob("out/*/wandb/offline-run-*")}
    assert told == [False, True, True]
    _check_tensorboard(tmp_path / "out")
    for folder, shown in watched.items():
        for tag in shown.Tags()["scalars"]:
            assert [(e.step, e.value) for e in shown.Scalars(tag)] == _series(folder)[tag]
    runs = list((_online if online else partial(_offline, tmp_path / "out"))())
    _check_wandb(runs, tmp_path / "out", "mine")
    assert online or ids == {run.id for run in runs}


def test_what_is_made_again_has_another_name_for_its_training(tmp_path):
    artifact = Artifact(epath.Path(tmp_path), "pretrain", "base", 0, {})
    first = make_progress_folder([artifact])
    name = read_training_name(first)
    assert name and read_training_name(make_progress_folder([artifact])) == name
    remove_progress(first)
    assert read_training_name(make_progress_folder([artifact])) != name


# Mistakes


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The one line of a command in this process that has made nothing."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def said(*flags, more=""):
        Path("toy.py").write_text(EXPERIMENT + more)
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", "toy.py", *flags])
        line = capsys.readouterr().err
        assert stop.value.code == 2 and line.count("\n") == 1 and not Path("runs").exists()
        return line

    return said


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_missing_is_told_with_the_extra_that_has_it(
    name, package, refused, monkeypatch
):
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"undo_jax.sinks.{name}", raising=False)
    said = refused("--sinks", name)
    assert said.startswith(f"undo-jax: sink {name}: ")
    assert f": pip install '{package}>=" in said and said.endswith("'\n")


def test_a_sink_that_is_not_there_is_told_with_those_that_are(refused):
    said = refused("--sinks", "tensorbord")
    assert f"there is no sink 'tensorbord': choose from {', '.join(NAMES)}" in said


@pytest.mark.parametrize("given", ["'tensorboard'", "('tensorboard',)"])
def test_sinks_of_an_experiment_are_functions(given, refused):
    changed = f"from dataclasses import replace\nexperiment = replace(experiment, sinks={given})\n"
    assert f"sinks={given}: give a tuple of functions" in refused(more=changed)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "W&B: not logged in: set WANDB_API_KEY, run `wandb login"),
        pytest.param(
            {"WANDB_API_KEY": "0" * 40},
            "check the network, run `wandb login",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wandb_that_lets_nobody_in_is_told_before_anything_trains(environment, said, tmp_path):
    """Nothing listens at this port."""
    (tmp_path / "toy.py").write_text(EXPERIMENT)
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    status, told = _run(tmp_path, "--sinks", "wandb", **nowhere, **environment)
    assert status == 2 and told.startswith("undo-jax: ") and told.count("\n") == 1, told
    assert said in told and "or set WANDB_MODE=offline" in told
    assert not any(path.read_text() for path in tmp_path.glob("out/*/metrics.jsonl"))


WRONG = {
    "no context": ("def s(target):\n    return None", "returns None: give a context manager that"),
    "undecorated": ("def s(target):\n    yield print", "put @contextmanager above its def"),
    "no argument": ("@contextmanager\ndef s():\n    yield print", "cannot be called with a target"),
    "nothing": (
        "@contextmanager\ndef s(target):\n    if False:\n        yield",
        "yields nothing: ",
    ),
    "none": ("@contextmanager\ndef s(target):\n    yield None", "yields None "),
    "one argument": (
        "@contextmanager\ndef s(target):\n    def write(fields): pass\n    yield write",
        "yields <function s.<locals>.write",
    ),
    "twice": (
        "@contextmanager\ndef s(target):\n    yield lambda tags, fields: None\n    yield 2",
        "yields more than once: ",
    ),
}


@pytest.mark.parametrize(("code", "said"), WRONG.values(), ids=WRONG)
def test_what_is_no_sink_is_told_in_one_line_before_anything_trains(code, said, tmp_path):
    """But that it yields twice shows only as it is closed."""
    there = {"contextmanager": contextmanager}
    exec(code, there)
    trains, target = [], Target(epath.Path(tmp_path), [{}], "toy", "it")
    with pytest.raises(ValueError, match=r"^sink s .*@contextmanager|^sink s .*: give a") as error:
        with open_log("pretrain", 1, [(target, {})], (jsonl, there["s"])):
            trains.append(1)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert bool(trains) == ("more than once" in said)


def test_a_sink_needs_no_hash_and_a_class_is_one(tmp_path):
    class Kept(list):
        """A list is not hashable."""

        def __call__(self, target):
            return nullcontext(lambda tags, fields: self.append(fields))

    kept, target = Kept(), Target(epath.Path(tmp_path), [{}], "toy", "it")
    with open_log("pretrain", 1, [(target, {})], (jsonl, kept, jsonl, partial(kept))) as log:
        log.record(0, step=1, loss=0.5)
    assert list(kept) == [{"step": 1, "loss": 0.5}] * 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_an_error_of_training_reaches_a_sink_and_goes_on(tmp_path):
    seen, target = [], Target(epath.Path(tmp_path), [{}], "toy", "it")

    @contextmanager
    def watching(target):
        try:
            yield lambda tags, fields: None
        except RuntimeError as error:
            seen.append(error)
            raise

    with pytest.raises(RuntimeError, match="of the training"):
        with open_log("pretrain", 1, [(target, {})], (watching,)):
            raise RuntimeError("of the training")
    assert len(seen) == 1


LATE = """
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path


@contextmanager
def late(target):
    yield lambda tags, fields: None
    if not Path("mended").exists():
        raise OSError("too late")


experiment = replace(experiment, sinks=(late,), saving=CheckpointPolicy())
"""


@pytest.mark.slow
def test_a_sink_that_fails_as_it_closes_costs_no_training(tmp_path):
    (tmp_path / "toy.py").write_text(EXPERIMENT + LATE)
    status, said = _run(tmp_path, "--stage", "pretrain")
    assert status == 2 and "too late" in said.splitlines()[-1]
    (tmp_path / "mended").touch()
    status, said = _run(tmp_path, "--stage", "pretrain")
    assert status == 0 and "goes on from step 40" in said, said

"""Two processes of four devices each do what one process of eight does, each with its own rows."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

import undo_jax
from undo_jax.cli import devices
from undo_jax.cli import main as cli
from undo_jax.cli.artifact_lm import read_lm
from undo_jax.cli.devices import Processes
from undo_jax.models.gemma2 import preset
from undo_jax.runner import experiment as experiments
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import assemble_batch, local_rows, shardings
from undo_jax.store import param_checkpoint
from undo_jax.training.loop import make_take

QUICKSTART = Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py"
BATCH, STEPS = 8, 2
SCORE = "cross_entropy/retain"
TOY = f"""
import importlib.util
import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from undo_jax.models.gemma2 import preset
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.runtime.mesh import MeshShape

spec = importlib.util.spec_from_file_location("quickstart", {str(QUICKSTART)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
shipped = module.experiment


class Noted:
    '''A stream that notes which rows of it this process reads.'''

    def __init__(self, name, batches):
        self.name, self.batches = name, batches

    def __getitem__(self, index):
        rows = self.batches[index]
        step, part = index
        note = [self.name, step, list(range({BATCH}))[part], len(rows)]
        with (Path(__file__).parent / f"rows-{{jax.process_index()}}").open("a") as file:
            file.write(json.dumps(note) + "\\n")
        if step == {STEPS} - 1 and os.environ.get("DIES") == str(jax.process_index()):
            die_in(os.environ["DIE_IN"])
        return rows


@contextmanager
def noted(target):
    '''A sink that notes which process has opened it.'''
    (Path(__file__).parent / f"sink-{{jax.process_index()}}").touch()
    yield lambda tags, fields: None


def die_in(stage):
    '''Once this stage, if it is training, is saved.'''
    here = Path(__file__).parent / "out"
    while list(here.glob(f"progress-{{stage}}-*")):
        saves = here.glob(f"progress-{{stage}}-*/from-*/*")
        if any(save.name.isdigit() for save in saves):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)


@dataclass(frozen=True)
class Toy(Arithmetic):
    def stream(self, name, batch_size, seed):
        return Noted(name, super().stream(name, batch_size, seed))


def short(part, **changes):
    optimizer = replace(part.training.optimizer, warmup=1, epsilon=1e-3)
    training = replace(part.training, steps={STEPS}, eval_every={STEPS}, batch_size={BATCH},
                       optimizer=optimizer)
    return replace(part, training=training, **changes)


experiment = replace(
    shipped,
    setting=Toy(**{{**vars(shipped.setting), "problems": 200, "questions": 3,
                    "validation_rows": 1, "row_length": 12}}),
    model=preset("2B", layers=1, width=8, feed_forward=8, heads=1, kv_heads=1, head_width=8,
                 vocabulary=16, init_stddev=0.25),
    pretrain=short(shipped.pretrain),
    unlearn=short(shipped.unlearn),
    noise=replace(shipped.noise, alphas=(0.5,)),
    distill=short(shipped.distill, stop_early=False),
    relearn=short(shipped.relearn, learning_rates=(0.01,)),
    seeds=(0,),
    mesh=MeshShape(sweep=2, data=2, fsdp=2),
    sinks=(noted,),
)
"""


def _toy(folder):
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    return folder


def _run(folder, *flags, die_in="", dies=0):
    """The command in two processes; what each said on stderr.

    With `die_in` one of them dies in this stage, as after kill -9, when it is saved.
    """
    environment = {"DIE_IN": die_in, "DIES": str(dies) if die_in else ""}
    with _started(folder, ["toy.py", *flags], ["toy.py", *flags], **environment) as running:
        said = [process.communicate(timeout=300)[1] for process in running]
    ends = [process.returncode for process in running]
    if not die_in:
        assert ends == [0, 0], "\n".join(said)
        return said
    assert ends[dies] == -signal.SIGKILL and ends[1 - dies] == 75, "\n".join(said)
    *_, last = said[1 - dies].splitlines()
    assert last == f"process {dies} of 2 died; the same command on all goes on from the last save"
    assert "Traceback" not in said[1 - dies] and "@ " not in said[1 - dies]
    return said


@contextmanager
def _started(folder, *arguments, **environment):
    """`undo-jax run ARGUMENTS`, in a process for each of these."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "UNDO_JAX_CACHE": str(folder / "cache"),
        **environment,
    }
    others = ["--coordinator", f"localhost:{port}", "--processes", str(len(arguments))]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "undo_jax", "run", *words, "--workdir",
                                  "out", *others, "--process", str(process)], cwd=folder,
                                 env=environment, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True)
            )
            for process, words in enumerate(arguments)
        ]  # fmt: skip
        for process in running:
            stack.callback(process.kill)
        yield running


def _artifacts(config, workdir, kind=None):
    """Every artifact of a run, after those that it is made from."""
    made = experiments.run(config.experiment(), workdir, kind)
    models = (one for found in made.values() for model in found for one in model.lineage)
    return list(dict.fromkeys(model.artifact for model in models))


def _params(folder):
    config = read_lm(epath.Path(folder))
    params = param_checkpoint.restore(epath.Path(folder) / "params", config, _mesh())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def _mesh(**shape):
    return make_mesh(MeshShape(**shape))


def _records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of one process, and its artifacts."""
    folder = _toy(tmp_path_factory.mktemp("hosts") / "alone")
    experiment = load(str(folder / "toy.py"))
    return _artifacts(experiment, folder / "out")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of two processes, and what they said; models are spread over processes."""
    folder = _toy(tmp_path_factory.mktemp("hosts") / "together")
    return folder, _run(folder)


@pytest.mark.slow
def test_two_processes_make_the_models_of_one(alone, together):
    folder = together[0] / "out"
    made = {path.parent.name for path in folder.glob("*/summary.json")}
    assert made == {artifact.folder.name for artifact in alone}
    for artifact in alone:
        for ours, theirs in zip(
            _params(folder / artifact.folder.name), _params(artifact.folder), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=artifact.stage)
    trained = {
        a.stage: _params(a.folder)
        for a in alone
        if a.model in ("base", "unlearn-only", "unlearn-only by forget")
    }
    assert len(trained) == 3  # and training did change them
    first, *others = trained.values()
    assert all(np.abs(one[0] - first[0]).max() > 1e-4 for one in others)


@pytest.mark.slow
def test_process_0_writes_each_record_once_and_speaks_alone(alone, together):
    folder, said = together
    for artifact in alone:
        if artifact.stage != "noise":
            ours = _records(folder / "out" / artifact.folder.name)
            theirs = _records(artifact.folder)
            assert [record["step"] for record in ours] == [r["step"] for r in theirs]
            assert [r["step"] for r in theirs] == [0, 1, STEPS]
            for pick in (lambda r: r.get("loss"), lambda r: r.get("eval", {}).get(SCORE)):
                numbers = [[pick(r) for r in part if pick(r)] for part in (ours, theirs)]
                np.testing.assert_allclose(*numbers, rtol=1e-5)
    assert "report: " in said[0]
    assert (folder / "out" / "report-quickstart" / "index.html").exists()
    assert not [line for line in said[1].splitlines() if "[Gloo]" not in line]
    assert [path.name for path in folder.glob("sink-*")] == ["sink-0"]


@pytest.mark.slow
def test_a_run_that_is_finished_does_nothing_on_another_mesh(together):
    folder = together[0]
    files = [
        path for path in (folder / "out").glob("*/**/*") if "report-quickstart" not in path.parts
    ]
    before = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    notes = (folder / "rows-0").read_text()
    _run(folder, "--mesh", "data=4,fsdp=2")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (folder / "rows-0").read_text() == notes


@pytest.mark.slow
def test_two_processes_store_a_teachers_states_once_for_both(alone, together, tmp_path):
    """Students are those of a teacher beside them; the same command finds the states again."""
    folder = _toy(tmp_path / "cached")
    own = "super().stream(name, batch_size, seed)"  # a stream that notes what is read has no rows
    (folder / "toy.py").write_text(TOY.replace(f"Noted(name, {own})", own))
    shutil.copytree(together[0] / "cache", folder / "cache")
    first, second = _run(folder, "--cache-teachers"), _run(folder, "--cache-teachers")
    assert sum("storing states of unlearn-only" in line for line in first[0].splitlines()) == 1
    assert not any("storing states" in said for said in (first[1], *second))
    assert len(list((folder / "out").glob("states-*/manifest.json"))) == 1
    for artifact in alone:
        for ours, theirs in zip(
            _params(folder / "out" / artifact.folder.name), _params(artifact.folder), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=artifact.stage)


SAVING = ("--saving.every", "1", "--saving.minutes", "0")
TRAINED = ("pretrain", "unlearn", "distill", "relearn")


@pytest.mark.slow
def test_two_processes_of_which_one_dies_in_every_stage_go_on_bit_for_bit(
    alone, together, tmp_path
):
    folder = _toy(tmp_path / "killed")
    shutil.copytree(together[0] / "cache", folder / "cache")
    for index, (before, stage) in enumerate(zip(("", *TRAINED), (*TRAINED, ""), strict=True)):
        said = _run(folder, *SAVING, die_in=stage, dies=index % 2)
        assert ("goes on from step 1" in said[0]) == bool(before)
    for artifact in alone:
        name = artifact.folder.name
        for ours, theirs in zip(
            _params(folder / "out" / name), _params(together[0] / "out" / name), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs, err_msg=artifact.stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["unlearn", "distill"])
def test_one_process_goes_on_where_one_of_two_died(stage, alone, together, tmp_path, capfd):
    folder = _toy(tmp_path / "killed")
    shutil.copytree(together[0] / "cache", folder / "cache")
    _run(folder, *SAVING, die_in=stage, dies=1)
    experiment = load(str(folder / "toy.py"))
    made = _artifacts(experiment, folder / "out", kind=stage)
    assert "goes on from step 1" in capfd.readouterr().err
    known = {artifact.folder.name: artifact.folder for artifact in alone}
    for artifact in (artifact for artifact in made if artifact.stage == stage):
        for ours, theirs in zip(
            _params(artifact.folder), _params(known[artifact.folder.name]), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [0, 1])
def test_where_one_cannot_go_on_the_other_says_which_and_why_not(bad, tmp_path):
    """An experiment's file is missing on one host: it says so, and the other ends like it."""
    folder = _toy(tmp_path / "one")
    words = [["toy.py"], ["toy.py"]]
    words[bad] = ["missing.py"]
    with _started(folder, *words) as running:
        said = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2], said
    assert said[bad].startswith("undo-jax: no experiment file missing.py")
    other = f"undo-jax: process {bad} of 2 has ended with status 2: see its output\n"
    assert said[1 - bad] == other and said[bad].count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_wait_for_others_can_be_stopped(number, tmp_path):
    folder = _toy(tmp_path / "waiting")
    with _started(folder, ["toy.py"], ["toy.py"]) as (first, second):
        second.kill()
        port = int(first.args[first.args.index("--coordinator") + 1].rpartition(":")[2])
        _until_it_listens(first, port)
        first.send_signal(number)
        said = first.communicate(timeout=60)[1]
    assert first.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}[number]
    assert said.count("\n") == 1 and "the same command goes on" in said


def _until_it_listens(process, port):
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("localhost", port), timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)


@pytest.mark.slow
def test_each_process_reads_its_own_rows_once(alone, tmp_path):
    folder = _toy(tmp_path / "rows")
    _run(folder, "--mesh", "data=4,fsdp=2", "--stage", "pretrain")
    for process, rows in enumerate(([0, 1, 2, 3], [4, 5, 6, 7])):
        notes = [json.loads(x) for x in (folder / f"rows-{process}").read_text().splitlines()]
        checked, notes = notes[:2], notes[2:]  # before training, a row of each stream is checked
        assert sorted(checked) == [["oracle", 0, [0], 1], ["pretrain", 0, [0], 1]]
        assert notes == [
            [name, step, rows, 4] for step in range(STEPS) for name in ("pretrain", "oracle")
        ]
    for artifact in alone[:2]:  # the rows were the right ones
        for ours, theirs in zip(
            _params(folder / "out" / artifact.folder.name), _params(artifact.folder), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def _lead(tree, trials):
    """Shapes of a population of such models."""
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct((trials, *w.shape), w.dtype), tree)


@pytest.mark.parametrize("shape", [{"sweep": 2, "data": 1, "fsdp": 4}, {"sweep": 8, "data": 1}])
def test_a_member_leaves_its_population_alone(shape):
    """No device has room made for the others: a trial comes out, and no more is kept meanwhile."""
    lm, mesh, trials = preset("tiny"), _mesh(**shape), 8
    alone = jax.eval_shape(lm.init, jax.random.key(0))
    placement = shardings(_lead(alone, trials), lm.rules, mesh, ("sweep",))
    stacked = jax.tree.map(
        lambda w, place: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place),
        _lead(alone, trials),
        placement,
    )
    taken = make_take(lm, mesh).lower(stacked, 3).compile()
    memory = taken.memory_analysis()
    assert memory.temp_size_in_bytes < 1.1 * memory.output_size_in_bytes
    assert taken.output_shardings == shardings(alone, lm.rules, mesh)


@pytest.mark.parametrize(
    "shape", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"sweep": 8, "data": 1}]
)
def test_rows_are_read_once_however_many_devices_hold_them(shape):
    batch = np.arange(3 * 16 * 5).reshape(3, 16, 5)
    reads = []

    def read(rows):
        reads.append(rows)
        return batch[:, rows]

    mesh = _mesh(**shape)
    placed = assemble_batch(mesh, 16, read)
    assert reads == local_rows(mesh, 16) == [slice(0, 16)]
    np.testing.assert_array_equal(placed, batch)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 16 // shards, 5)}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--processes 2", "--coordinator and --process missing"),
        ("--coordinator localhost:1 --processes 2", "--process missing"),
        ("--coordinator localhost --processes 2 --process 0", "'localhost' is not HOST:PORT"),
        ("--coordinator localhost:x --processes 2 --process 0", "'localhost:x' is not HOST:PORT"),
        ("--coordinator h:99999 --processes 2 --process 0", "'h:99999' is not HOST:PORT"),
        ("--coordinator localhost:1 --processes 2 --process 2", "process 2 of 2"),
        ("--coordinator localhost:1 --processes 0 --process 0", "process 0 of 0"),
        ("--coordinator localhost:1 --processes two --process 0", "two"),
        ("--coordinator localhost:1 --processes 2 --process 1", "no coordinator at localhost:1"),
    ],
)
@pytest.mark.parametrize("command", [("run", str(QUICKSTART)), ("export-hf", "artifact", "out")])
def test_processes_that_cannot_be_meant(capsys, monkeypatch, command, flags, said):
    monkeypatch.setattr(devices, "PATIENCE", 0)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("it joined"))
    monkeypatch.setattr(experiments, "run", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, *flags.split()])
    refused = capsys.readouterr().err
    assert stop.value.code == 2
    assert refused.startswith("undo-jax: ") and refused.count("\n") == 1 and said in refused


def test_processes_that_find_no_cluster(monkeypatch):
    """`--distributed` leaves everything to JAX."""
    calls = []

    def initialize(*given, **options):
        calls.append((given, options["cluster_detection_method"]))
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConnectionError, match="give --coordinator HOST:PORT"):
        devices.join(Processes(distributed=True))
    assert calls == [((None, None, None), None)]
    devices.join(Processes())
    assert len(calls) == 1


@pytest.mark.parametrize("libtpu", [False, True])
def test_simulated_devices_wait_long_for_each_other(monkeypatch, libtpu):
    """What the user says stays; libtpu knows no such flag and would stop."""
    monkeypatch.setattr(devices, "find_spec", lambda _: object() if libtpu else None)
    settings = SimpleNamespace(values={"jax_platforms": None})
    monkeypatch.setattr(devices, "jax", SimpleNamespace(config=settings))
    own = "--xla_cpu_collective_call_terminate_timeout_seconds=7"
    monkeypatch.setenv("XLA_FLAGS", own)
    devices._let_cpus_wait(-1)
    flags = os.environ["XLA_FLAGS"].split()
    more = [
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    ]
    assert flags == [own, *(() if libtpu else more)]


@pytest.mark.parametrize(
    ("asked", "known", "threads"), [(8, None, "64"), (8, "9", "9"), (1, None, None)]
)
def test_devices_that_are_asked_for_have_threads_to_wait(monkeypatch, asked, known, threads):
    """One that waits in a collective holds a thread, and may wait in several at once."""
    monkeypatch.delenv(devices.THREADS, raising=False)
    if known:
        monkeypatch.setenv(devices.THREADS, known)
    devices._let_cpus_wait(asked)
    assert os.environ.get(devices.THREADS) == threads

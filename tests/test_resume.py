"""Training that is interrupted and goes on is the same training, bit for bit."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import AxisType, Mesh

import undo_jax
from undo_jax import losses
from undo_jax.cli import experiment_flags
from undo_jax.logs.log import open_log
from undo_jax.logs.sink import Target
from undo_jax.models.gemma2 import preset
from undo_jax.runner import experiment as experiments
from undo_jax.runner import save_trained, unfinished
from undo_jax.runner import train_group as shared
from undo_jax.runner.load_experiment import load
from undo_jax.runtime import signals
from undo_jax.runtime.preemption import Stop, defer_signals
from undo_jax.runtime.signals import PREEMPTED, Preempted
from undo_jax.sinks.jsonl import jsonl
from undo_jax.store import artifacts, train_checkpoints
from undo_jax.store.artifacts import Artifact
from undo_jax.store.progress_folders import make_progress_folder, remove_finished_progress
from undo_jax.store.train_checkpoints import CheckpointPolicy, open_checkpoints
from undo_jax.training import meter, optim, programs, train_step
from undo_jax.training.loop import train_together
from undo_jax.training.population import Evaluator, Population, Trial, TrialInputs, TrialResult
from undo_jax.training.programs import TrainSpec

ROOT = Path(undo_jax.__file__).parent.parent
LM = preset("tiny", layers=1, width=16, feed_forward=16, head_width=8, init_stddev=0.25)
INIT = jax.jit(LM.init)
STEPS, BATCH, TRIALS = 12, 8, 5
SHAPES = {"one device": (1, 1, 1, 1), "eight": (2, 2, 2, 1), "sweep": (8, 1, 1, 1)}
EVERY = CheckpointPolicy(every=3, minutes=0)
SOME = optim.Trains(((r"mlp/(down|up)$", (0,)), (r"attention/query$", None)))


class LostError(Exception):
    """The process dies here."""


class Stream:
    """Batch `step` of seed `seed`; `at` is called before a step's batch is read."""

    def __init__(self, seed, at):
        self.seed, self.at = seed, at

    def __getitem__(self, part):
        step, rows = part
        self.at(step)
        return _tokens(self.seed + 10 * step)[rows]


def _run(config, workdir, kind=None):
    """Every artifact of a run, after those that it is made from."""
    made = experiments.run(config.experiment(), workdir, kind)
    models = (one for found in made.values() for model in found for one in model.lineage)
    return list(dict.fromkeys(model.artifact for model in models))


def _tokens(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, LM.vocabulary, (BATCH, 6), dtype=np.int32)


def _mesh(name):
    shape = SHAPES[name]
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, ("sweep", "data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 4)


def _never(scores):
    return False


def _nothing(step):
    pass


def _fit(
    folder, mesh, saving=None, stops=(_never,) * TRIALS, at=_nothing, stop=None, last=True,
    trains=None, starts=TRIALS,
):  # fmt: skip
    """Five models of two inputs that start from so many; with `saving`, from the last save on."""
    inputs = [
        TrialInputs(
            {"train": Stream(seed, at)}, {"teacher": (LM, partial(INIT, jax.random.key(50 + seed)))}
        )
        for seed in (0, 1)
    ]
    rates = (0.01, 0.02, 0.03, 0.01, 0.02)
    trials = [
        Trial(
            str(i % starts),
            partial(INIT, jax.random.key(i % starts)),
            jax.random.key(100 + i),
            rates[i],
            inputs[i % 2],
            ends,
        )
        for i, ends in enumerate(stops)
    ]
    adam = optim.AdamW(warmup=3, decay="cosine", epsilon=1e-3, weight_decay=0.1 if trains else 0.0)
    spec = TrainSpec(
        lm=LM,
        loss=losses.distillation,
        training=train_step.Training(STEPS, BATCH, adam, eval_every=4),
        streams=("train",),
        refs={"teacher": LM},
        row_length=5,
        trains=trains,
    )
    evaluation = Evaluator(
        lambda lm, params, rows: {"ce": losses.cross_entropy(lm, params, train_step.rows(rows))},
        _tokens(77),
    )
    tags = [{"member": i} for i in range(TRIALS)]
    places = [Target(epath.Path(folder) / str(i), tags[i::2], "test", f"{i}") for i in range(2)]
    for place in places:
        place.folder.mkdir(parents=True, exist_ok=True)
    targets = [(places[i % 2], tags[i]) for i in range(TRIALS)]
    with jax.set_mesh(mesh), open_log("test", STEPS, targets, [jsonl]) as log:
        if saving is None:
            return _taken(train_together(Population(spec, evaluation, mesh, trials), log))
        path = epath.Path(folder) / "progress"
        with open_checkpoints(path, saving, stop or Stop(), last) as saved:
            return _taken(train_together(Population(spec, evaluation, mesh, trials), log, saved))


def _taken(results):
    return [result._replace(params=result.params()) for result in results]


def _records(folder):
    """Every record, without the speed."""
    files = sorted(Path(folder).glob("*/metrics.jsonl"))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def _same(ours, theirs, atol=0.0):
    assert [r.steps for r in ours] == [r.steps for r in theirs]
    ours, theirs = ([result[1:] for result in results] for results in (ours, theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def _saves(folder):
    return sorted(int(p.name) for p in (Path(folder) / "progress").iterdir() if p.name.isdigit())


@contextmanager
def _dies_at(step):
    """What is called before every step's batch is read, and raises before this one's."""

    def at(now):
        if now == step:
            raise LostError

    with pytest.raises(LostError):
        yield at


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Many records in few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "LOG_EVERY", 2)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """By mesh: results, records and stop rules of a run that nothing interrupts.

    Members 1 and 3 stop early, at their scores after 4 and 8 steps.
    """
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("all")
            _fit(folder, _mesh(name))
            found = {(r["member"], r["step"]): r["eval"]["ce"]
                     for r in _records(folder) if "eval" in r}  # fmt: skip

            def stop_at(ce):
                return lambda scores: abs(scores["ce"] - ce) < 1e-5

            stops = [_never] * TRIALS
            stops[1], stops[3] = stop_at(found[1, 4]), stop_at(found[3, 8])
            folder = tmp_path_factory.mktemp("straight")
            results = _fit(folder, _mesh(name), stops=stops)
            assert [r.steps for r in results] == [12, 4, 12, 8, 12]
            made[name] = results, _records(folder), stops
        return made[name]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("starts", [TRIALS, 2], ids=["own starts", "two starts"])
@pytest.mark.parametrize("name", ["one device", "eight"])
def test_a_training_of_some_parameters_goes_on_bit_for_bit(name, starts, tmp_path):
    """Also where trials start alike, and share what does not train."""
    how = {"trains": SOME, "starts": starts}
    results = _fit(tmp_path / "straight", _mesh(name), **how)
    with _dies_at(8) as at:
        _fit(tmp_path / "again", _mesh(name), EVERY, at=at, **how)
    assert _saves(tmp_path / "again") == [3, 6]
    _same(_fit(tmp_path / "again", _mesh(name), EVERY, **how), results)
    assert _records(tmp_path / "again") == _records(tmp_path / "straight")
    for i, result in enumerate(results):
        for path, old in jax.tree_util.tree_leaves_with_path(INIT(jax.random.key(i % starts))):
            new = result.params
            for key in path:
                new = new[key.key]
            assert np.any(old != new) == (path[-1].key in ("down", "up", "query")), path


@pytest.mark.slow
def test_what_is_shared_goes_on_on_other_devices(tmp_path):
    """And trains as if nothing were."""
    how = {"trains": SOME, "starts": 2}
    with _dies_at(8) as at:
        _fit(tmp_path / "again", _mesh("one device"), EVERY, at=at, **how)
    results = _fit(tmp_path / "again", _mesh("sweep"), EVERY, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "can_share_frozen", lambda *_: False)
        _same(results, _fit(tmp_path / "stacked", _mesh("one device"), **how), atol=1e-5)


@pytest.mark.parametrize("name", ["one device", pytest.param("eight", marks=pytest.mark.slow)])
@pytest.mark.parametrize(  # with saves at 3, 6 and 9; 4 and 8 are evaluations
    "step",
    [
        pytest.param(1, marks=pytest.mark.slow),
        4,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 11)),
    ],
)
def test_a_population_goes_on_bit_for_bit(name, step, straight, tmp_path, capfd):
    results, records, stops = straight(name)
    with _dies_at(step) as at:
        _fit(tmp_path, _mesh(name), EVERY, stops, at)
    assert _saves(tmp_path) == [s for s in (3, 6, 9) if s <= step][-2:]
    _same(_fit(tmp_path, _mesh(name), EVERY, stops), results)
    assert _records(tmp_path) == records
    assert (f"test: goes on from step {step // 3 * 3}\n" in capfd.readouterr().err) == (step > 2)


@pytest.mark.slow
def test_a_loss_at_every_step_costs_nothing(straight, tmp_path):
    """Saved before each step, it dies before each step once."""
    results, records, stops = straight("one device")
    saving = CheckpointPolicy(every=1, minutes=0, keep=1)
    for step in range(STEPS):
        with _dies_at(step) as at:
            _fit(tmp_path, _mesh("one device"), saving, stops, at)
        assert _saves(tmp_path) == [step][:step]  # the first step has nothing to save
    _same(_fit(tmp_path, _mesh("one device"), saving, stops), results)
    assert _records(tmp_path) == records


@pytest.mark.slow
@pytest.mark.parametrize("other", ["one device", "sweep"])
def test_it_goes_on_on_other_devices(other, straight, tmp_path):
    """Six lanes become five and eight; the trials keep their states."""
    results, records, stops = straight("eight")
    with _dies_at(7) as at:
        _fit(tmp_path, _mesh("eight"), EVERY, stops, at)
    _same(_fit(tmp_path, _mesh(other), EVERY, stops), results, atol=1e-6)
    kept = [(r["member"], r["step"], "eval" in r) for r in _records(tmp_path)]
    assert sorted(kept) == sorted((r["member"], r["step"], "eval" in r) for r in records)


def test_its_end_is_saved_where_others_follow(straight, tmp_path):
    results, records, stops = straight("one device")
    fifth = CheckpointPolicy(every=5, minutes=0)  # which the last step is not
    _fit(tmp_path, _mesh("one device"), fifth, stops, last=False)
    assert _saves(tmp_path) == [10, 12]

    def at(step):
        raise LostError

    _same(_fit(tmp_path, _mesh("one device"), fifth, stops, at, last=False), results)
    assert _records(tmp_path) == records


def _break(folder, *names):
    """Cut every file of a save in half."""
    for name in names:
        for path in (Path(folder) / "progress" / name).rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("broken", "first"), [(("9",), 6), (("6", "9"), 0)])
def test_a_save_that_cannot_be_read_is_set_aside(broken, first, straight, tmp_path, capfd):
    results, records, stops = straight("one device")
    with _dies_at(11) as at:
        _fit(tmp_path, _mesh("one device"), EVERY, stops, at)
    _break(tmp_path, *broken)
    capfd.readouterr()
    seen = []
    _same(_fit(tmp_path, _mesh("one device"), EVERY, stops, seen.append), results)
    said = capfd.readouterr().err
    assert said.count("cannot read a save, renamed to ") == len(broken)
    assert said.count("\n") <= len(broken) + 2 and "Traceback" not in said
    assert seen[0] == first and _records(tmp_path) == records
    assert _saves(tmp_path) == [9, 12]
    for name in broken:
        assert (tmp_path / "progress" / f"unreadable-{name}").is_dir()


@pytest.mark.parametrize("item", ["state", pytest.param("notes", marks=pytest.mark.slow)])
def test_a_save_with_a_flipped_bit_is_set_aside(item, straight, tmp_path, capfd):
    """In the largest file of its arrays or its notes; another one would hardly be seen by luck."""
    results, records, stops = straight("one device")
    with _dies_at(11) as at:
        _fit(tmp_path, _mesh("one device"), EVERY, stops, at)
    files = [path for path in (tmp_path / "progress/9" / item).rglob("*") if path.is_file()]
    _flip(max(files, key=lambda path: path.stat().st_size))
    seen = []
    _same(_fit(tmp_path, _mesh("one device"), EVERY, stops, seen.append), results)
    said = capfd.readouterr().err
    assert seen[0] == 6 and _records(tmp_path) == records
    assert "cannot read a save, renamed to " in said and "Traceback" not in said
    assert (tmp_path / "progress" / "unreadable-9").is_dir()


@pytest.mark.slow
def test_a_save_of_other_members_is_set_aside(straight, tmp_path, capfd):
    _, _, stops = straight("one device")
    with _dies_at(5) as at:
        _fit(tmp_path, _mesh("one device"), EVERY, stops, at)
    seen = []
    _fit(tmp_path, _mesh("one device"), EVERY, stops[:4], seen.append)
    assert seen[0] == 0 and "its notes are of other trials" in capfd.readouterr().err


def _flip(path):
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 2
    path.write_bytes(content)


def test_half_a_save_is_never_read(straight, tmp_path):
    results, _, stops = straight("one device")
    with _dies_at(5) as at:
        _fit(tmp_path, _mesh("one device"), EVERY, stops, at)
    half = tmp_path / "progress" / "4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "progress" / "3", half)
    seen = []
    _same(_fit(tmp_path, _mesh("one device"), EVERY, stops, seen.append), results)
    assert seen[0] == 3


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False,
                             capture_output=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip("needs root to mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_line_and_the_last_save_stays(small_disk, straight, tmp_path):
    results, records, stops = straight("one device")
    with _dies_at(4) as at:
        _fit(tmp_path, _mesh("one device"), EVERY, stops, at)
    (small_disk / "3").mkdir()
    shutil.copytree(tmp_path / "progress" / "3", small_disk / "3", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "progress")
    (tmp_path / "progress").symlink_to(small_disk)
    with open(small_disk / "rest", "wb") as rest:  # leave room for little more
        rest.truncate()
        usage = shutil.disk_usage(small_disk)
        rest.write(bytes(max(usage.free - 20_000, 0)))
    with pytest.raises(OSError, match="no space is left on the disk of .*/progress") as error:
        _fit(tmp_path, _mesh("one device"), EVERY, stops)
    assert "\n" not in str(error.value) and "make room" in str(error.value)
    assert _saves(tmp_path) == [3]
    (small_disk / "rest").unlink()
    with pytest.MonkeyPatch.context() as patch:  # one save at a time has room again
        patch.setattr(sys.modules[__name__], "EVERY", CheckpointPolicy(every=100))
        _same(_fit(tmp_path, _mesh("one device"), EVERY, stops), results)
    del error
    gc.collect()  # Orbax's futures log their errors here, and not within another test
    assert _records(tmp_path) == records


@pytest.fixture
def filling_disk(tmp_path):
    """A folder on a file system of its own, and what gives it another size."""
    disk = tmp_path / "filling"
    disk.mkdir()

    def size(text, *options):
        mount = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={text}", *options)), "none", disk]
        return subprocess.run(mount, check=False, capture_output=True).returncode

    if size("400k"):
        pytest.skip("needs root to mount a small disk")
    yield disk, size
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_the_command_on_a_full_disk_says_so_in_its_last_line_alone(filling_disk, toy, two_runs):
    """Wherever it becomes full; with room the same command goes on to the same numbers."""
    disk, size = filling_disk
    quiet, _ = two_runs
    for room in ("250k", "400k", "50m"):
        assert not size(room, "remount")
        with _running(toy, disk / "out", quiet.parent / "cache", "--stage", "pretrain") as running:
            said = running.communicate(timeout=240)[1]
        if room == "50m":
            break
        *before, last = said.splitlines()
        assert running.returncode == 2, said
        assert last.startswith(f"undo-jax: no space is left on the disk of {disk}/out")
        assert last.endswith(": make room, and the same command goes on from what is saved")
        assert all(line.startswith("pretrain") for line in before), said
    assert not running.returncode, said
    _same_workdirs(disk / "out", quiet)


# Signals


def _send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_signal_saves_before_the_next_step(number, raised, where, straight, tmp_path):
    results, records, stops = straight("one device")
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    seen = []

    def at(step):
        seen.append(step)
        if (where, step, seen.count(6)) == ("step", 6, 1):  # once, though there are two inputs
            _send(number)

    def stop(scores):
        if (where, seen[-1:]) == ("evaluation", [7]):
            _send(number)
        return stops[0](scores)

    with pytest.raises(raised, match="saved at step") as left, defer_signals() as asked:
        _fit(tmp_path, _mesh("one device"), CheckpointPolicy(), [stop, *stops[1:]], at, asked)
    assert set(seen) == set(range({"step": 7, "evaluation": 9}[where]))
    assert _saves(tmp_path) == [seen[-1] + 1]
    assert raised is KeyboardInterrupt or left.value.code == PREEMPTED == 75
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    _same(_fit(tmp_path, _mesh("one device"), CheckpointPolicy(), stops), results)
    assert _records(tmp_path) == records


def test_a_second_ctrl_c_stops_at_once(capfd):
    with pytest.raises(KeyboardInterrupt, match="not saved"), defer_signals() as asked:
        _send(signal.SIGINT)
        assert asked.is_requested()
        said = "\nstopping after the next save; Ctrl-C again stops at once\n"
        assert capfd.readouterr().err == said
        _send(signal.SIGINT)
        raise AssertionError("it went on")


def test_sigterm_ends_at_once_where_nothing_is_to_be_saved():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), signals.raise_on_signals(*signals.EXIT_STATUSES):
        _send(signal.SIGTERM)
        raise AssertionError("it went on")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("swallowed", [True, False])
def test_what_others_catch_is_raised_in_the_end(swallowed):
    """Orbax turns whatever is raised while it reads into an exception of its own."""
    with pytest.raises(Preempted), signals.raise_on_signals(*signals.EXIT_STATUSES):
        try:
            _send(signal.SIGTERM)
        except BaseException as error:
            if not swallowed:
                raise RuntimeError("cannot read") from error
    with pytest.raises(KeyboardInterrupt, match="not saved"), defer_signals():
        _send(signal.SIGTERM)
        try:
            _send(signal.SIGINT)
        except BaseException as error:
            if not swallowed:
                raise RuntimeError("cannot read") from error


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    with pytest.raises(Preempted, match="before the first step"), defer_signals() as asked:
        _send(signal.SIGTERM)
        _fit(tmp_path, _mesh("one device"), CheckpointPolicy(), stop=asked)
    assert _saves(tmp_path) == []


PROCESS = """
import os, signal, sys, time
import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from undo_jax.store.train_checkpoints import CheckpointPolicy, open_checkpoints
from undo_jax.runtime.preemption import defer_signals

jax.config.update("jax_platforms", "cpu")
address, process, folder, when = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
place = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
x = jax.make_array_from_callback((2,), place, lambda index: np.zeros(2, np.float32)[index])
advance = jax.jit(lambda x: x + 1)
with defer_signals() as stop:
    for step in range(30):
        assert not stop.is_requested()
    if when == "Ctrl-C" and process == "1":
        os.kill(os.getpid(), signal.SIGINT)
if when == "between" and process == "1":
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0 if when == "within" else 2)
with (
    defer_signals() as stop,
    open_checkpoints(epath.Path(folder), CheckpointPolicy(), stop) as progress,
):
    for step in range(100_000):
        progress.save_if_due(step, lambda: ({"x": x}, {"step": step}))
        x = advance(x)
        if step == 20 and process == "1" and when == "within":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.005)
"""


def _two_processes(folder, when):
    """Exit statuses of two processes with two loops, of which one gets a signal; what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(process), folder, when],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], "\n".join(said)


def test_two_processes_stop_at_the_same_step(tmp_path):
    """One gets SIGTERM; both save, and one process reads what the two have written."""
    ends, said = _two_processes(tmp_path / "progress", "within")
    assert ends == [PREEMPTED] * 2, said
    (step,) = _saves(tmp_path)
    assert step > 20
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"x": jax.ShapeDtypeStruct((2,), np.float32, sharding=place)}
    with open_checkpoints(epath.Path(tmp_path) / "progress", CheckpointPolicy(), Stop()) as saved:
        found = saved.restore(lambda notes: like)
    assert found.step == found.notes["step"] == step
    np.testing.assert_array_equal(found.state["x"], step)


def test_ctrl_c_while_a_save_is_read_leaves_it_where_it_is(tmp_path, monkeypatch):
    """Though Orbax makes an error of its own of what the signal raises."""

    def read(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except BaseException as error:
            raise RuntimeError("cannot read") from error

    with open_checkpoints(
        epath.Path(tmp_path) / "progress", CheckpointPolicy(), Stop()
    ) as progress:
        progress.save(3, {"x": np.zeros(2)}, {})
    with open_checkpoints(
        epath.Path(tmp_path) / "progress", CheckpointPolicy(), Stop()
    ) as progress:
        monkeypatch.setattr(progress, "_read", read)
        with pytest.raises(KeyboardInterrupt), signals.raise_on_signals(signal.SIGINT):
            progress.restore(lambda notes: {"x": np.zeros(2)})
    assert _saves(tmp_path) == [3]


@pytest.mark.parametrize("when", ["between", pytest.param("Ctrl-C", marks=pytest.mark.slow)])
def test_a_signal_between_two_loops_stops_all_processes(when, tmp_path):
    """SIGTERM after the first loop, or Ctrl-C before the first stage is finished."""
    ends, said = _two_processes(tmp_path / "progress", when)
    assert 0 not in ends and ends[0] == PREEMPTED, said
    assert not _saves(tmp_path), "the second loop went on"


# When a save is made


def _loop(folder, saving, steps, stop=None):
    """Saves of a loop that does nothing, at each of these steps."""
    with open_checkpoints(epath.Path(folder) / "progress", saving, stop or Stop()) as saved:
        for step in steps:
            saved.save_if_due(step, lambda step=step: ({"x": np.full(2, step)}, {"step": step}))
    return _saves(folder)


def test_the_last_saves_are_kept(tmp_path):
    assert _loop(tmp_path, CheckpointPolicy(every=2, minutes=0, keep=3), range(12)) == [6, 8, 10]


def test_minutes_pass_between_two_saves(tmp_path, monkeypatch):
    now = iter(range(0, 6000, 60))
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(train_checkpoints, "time", clock)
    assert _loop(tmp_path, CheckpointPolicy(every=1, minutes=2.0, keep=99), range(1, 9)) == [
        2,
        4,
        6,
        8,
    ]


@pytest.mark.parametrize("field", [{"every": 0}, {"keep": 0}, {"minutes": -1.0}])
def test_savings_that_mean_nothing(field):
    values = {"every": 10, "minutes": 5.0, "keep": 2} | field
    with pytest.raises(ValueError) as error:
        CheckpointPolicy(**field)
    assert str(error.value) == (
        ", ".join(f"{name}={value}" for name, value in values.items())
        + ": every and keep must be at least 1, minutes at least 0"
    )
    CheckpointPolicy(every=1, minutes=0, keep=1)


# Artifacts that are made together


def _artifact(workdir, model):
    return Artifact(epath.Path(workdir), "distill", model, 0, {})


def _finish(artifact):
    artifacts.prepare_folder(artifact)
    artifacts.mark_finished(artifact, {})


def _models(workdir, names):
    return [SimpleNamespace(artifact=_artifact(workdir, name)) for name in names]


def test_artifacts_interrupted_while_they_are_finished_are_made_together_again(tmp_path):
    a, b, c = models = _models(tmp_path, "abc")
    folder = make_progress_folder([b.artifact, a.artifact])
    assert make_progress_folder([b.artifact, a.artifact]) == folder and folder.exists()
    assert unfinished.interrupted_groups(models, models) == [
        [b, a]
    ]  # in the order in which they trained
    _finish(a.artifact)
    assert unfinished.interrupted_groups(models, [b, c]) == [[b, a]]
    assert unfinished.interrupted_groups(models, [c]) == []
    remove_finished_progress(epath.Path(tmp_path))
    assert folder.exists()
    _finish(b.artifact)
    remove_finished_progress(epath.Path(tmp_path))
    assert not folder.exists()


def test_what_another_experiment_began_is_left_to_it(tmp_path):
    """It has a model that is none of ours: ours begins anew, and its training is kept."""
    a, b, c = _models(tmp_path, "abc")
    theirs = make_progress_folder([a.artifact, b.artifact])
    assert unfinished.interrupted_groups([a, c], [a, c]) == []
    ours = make_progress_folder([a.artifact, c.artifact])
    _finish(a.artifact)
    _finish(c.artifact)
    remove_finished_progress(epath.Path(tmp_path))
    assert theirs.exists() and not ours.exists()
    assert unfinished.interrupted_groups([a, b], [b]) == [[a, b]]


TOY = """
from dataclasses import replace
from undo_jax.runtime import workdir_lock
workdir_lock.PATIENCE = 600  # of a slow machine
import importlib.util
from undo_jax.models.gemma2 import preset
spec = importlib.util.spec_from_file_location("quickstart", {quickstart!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
shipped = module.experiment
setting = replace(shipped.setting, problems=200, validation_rows=1, questions=2, row_length=12)
sizes = dict(layers=1, width=8, feed_forward=8, heads=1, kv_heads=1, head_width=8)
model = preset("2B", vocabulary=16, **sizes)
experiment = replace(shipped, name="toy", setting=setting, model=model, seeds=(0,))
"""
SHORT = (
    "--pretrain.training.steps 12 --unlearn.training.steps 12 --distill.training.steps 12 "
    "--relearn.training.steps 12 --noise.alphas 0.5 --relearn.learning-rates 0.001 0.01 "
    "--distill.no-stop-early --together 5 --saving.every 2 --saving.minutes 0"
).split()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY.format(quickstart=str(ROOT / "experiments" / "quickstart.py")))
    return path


@pytest.fixture
def experiment(toy):
    flags = "--pretrain.training.steps 4 --pretrain.training.eval-every 2".split()
    return experiment_flags.override(load(str(toy)), flags)


@pytest.mark.slow
def test_a_company_waits_for_parents_that_are_lost(experiment, tmp_path, monkeypatch):
    """What was interrupted goes on once what it is made from has been made again."""
    lost = []

    def fit(population, log, saves, on_evaluation=None):
        if log.bar.tasks[0].description.startswith("distill") and not lost:
            raise LostError
        return [
            TrialResult(t, t.init_params, 1, {"retain": 0.5, "forget": 0.5})
            for t in population.trials
        ]

    monkeypatch.setattr(shared, "train_together", fit)
    with pytest.raises(LostError):
        _run(experiment, tmp_path)
    lost += tmp_path.glob("noise-*")
    for folder in lost:
        shutil.rmtree(folder)
    assert lost and len(list(tmp_path.glob("progress-distill-*"))) == 1
    made = _run(experiment, tmp_path)
    assert all(artifact.finished for artifact in made)
    assert not list(tmp_path.glob("progress-*"))


def test_a_signal_after_the_last_step_lets_the_artifacts_be_finished(
    experiment, tmp_path, monkeypatch
):
    def fit(population, log, saves, on_evaluation=None):
        _send(signal.SIGTERM)
        return [
            TrialResult(t, t.init_params, 1, {"retain": 0.5, "forget": 0.5})
            for t in population.trials
        ]

    monkeypatch.setattr(shared, "train_together", fit)
    with pytest.raises(Preempted, match="finished stage"):
        _run(experiment, tmp_path)
    assert len(list(tmp_path.glob("*/summary.json"))) == 2
    assert not list(tmp_path.glob("progress-*")) and not list(tmp_path.glob("unlearn-*"))


@pytest.mark.slow
def test_a_death_while_artifacts_are_finished_loses_no_training(experiment, tmp_path, monkeypatch):
    finished, steps, finish_one = [], [], save_trained.finish

    def finish(run, artifact, *arguments, **more):
        if finished:
            raise LostError
        finished.append(artifact)
        finish_one(run, artifact, *arguments, **more)

    experiment = replace(experiment, saving=EVERY)
    with monkeypatch.context() as patch, pytest.raises(LostError):
        patch.setattr(save_trained, "finish", finish)
        _run(experiment, tmp_path / "a", kind="pretrain")
    assert len(list(tmp_path.glob("a/pretrain-*/summary.json"))) == 1
    stream = experiment.setting.stream
    with monkeypatch.context() as patch:
        patch.setattr(
            type(experiment.setting),
            "stream",
            lambda self, *a: _Watched(stream(*a), steps),
        )
        _run(experiment, tmp_path / "a", kind="pretrain")
    assert set(steps) == {3}
    _run(experiment, tmp_path / "b", kind="pretrain")
    _same_workdirs(tmp_path / "a", tmp_path / "b")


class _Watched:
    def __init__(self, stream, steps):
        self.stream, self.steps = stream, steps

    def __getitem__(self, part):
        step, rows = part
        if rows != slice(1):  # a row that is checked before training
            self.steps.append(step)
        return self.stream[part]


# The command line


def _same_workdirs(ours, theirs):
    """Every artifact of two workdirs: parameters to the bit, records, summaries."""
    folders = sorted(path.parent.relative_to(theirs) for path in theirs.glob("*/summary.json"))
    assert folders == sorted(p.parent.relative_to(ours) for p in ours.glob("*/summary.json"))
    for folder in folders:
        a, b = (json.loads((w / folder / "summary.json").read_text()) for w in (ours, theirs))
        for summary in (a, b):  # the speed is among the records, and their hash here
            del summary["sha256"], summary["files"]
        assert a == b
        a, b = (_params(workdir / folder / "params") for workdir in (ours, theirs))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.tobytes() == y.tobytes()
    assert _records(ours) == _records(theirs)


def _params(path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        like = checkpointer.metadata(path).item_metadata.tree
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), like)
        return jax.tree.map(np.asarray, checkpointer.restore(path, like))


@contextmanager
def _running(toy, workdir, cache, *flags):
    environment = {**os.environ, "UNDO_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "undo_jax", "run", str(toy), "--workdir", str(workdir)]
    with subprocess.Popen(
        [*command, *SHORT, *flags], env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def _wait(running, reached):
    deadline = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < deadline and running.poll() is None, running.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def two_runs(toy, tmp_path_factory):
    """A workdir in which two processes have run the first stage at once, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    start = partial(_running, toy, folder / "out")
    with ExitStack() as both:
        caches = (folder / "cache", folder / "other")
        running = [both.enter_context(start(cache, "--stage", "pretrain")) for cache in caches]
        said = [one.communicate(timeout=240)[1] for one in running]
    ends = [one.returncode for one in running]
    assert ends == [0, 0], said
    return folder / "out", said


@pytest.mark.slow
def test_of_two_runs_in_one_workdir_the_second_finds_what_the_first_has_made(two_runs):
    """It looks once the first has left, and so removes and trains nothing."""
    workdir, said = two_runs
    begun = "pretrain × 2 (base, oracle): starts"
    assert sorted(text.count(begun) for text in said) == [0, 1], said
    assert len(list(workdir.glob("pretrain-*/summary.json"))) == 2


@pytest.mark.slow
def test_killed_in_every_stage_the_run_ends_as_if_undisturbed(toy, tmp_path):
    """kill -9 once in each stage, SIGTERM in another: all artifacts are those of a quiet run."""
    ours, theirs, cache = tmp_path / "killed", tmp_path / "quiet", tmp_path / "cache"
    for stage, number in [
        ("pretrain", signal.SIGKILL),
        ("unlearn", signal.SIGTERM),
        ("distill", signal.SIGKILL),
        ("relearn", signal.SIGKILL),
    ]:
        with _running(toy, ours, cache) as running:
            _wait(running, lambda s=stage: list(ours.glob(f"progress-{s}-*/from-*/[468]")))
            running.send_signal(number)
            said = running.communicate(timeout=60)[1]
        assert running.returncode == (75 if number == signal.SIGTERM else -9), said
        assert list(ours.glob(f"progress-{stage}-*"))
    with _running(toy, ours, cache) as running:
        said = running.communicate(timeout=240)[1]
    assert not running.returncode and "goes on from step" in said, said
    with _running(toy, theirs, cache) as running:
        said = running.communicate(timeout=240)[1]
    assert not running.returncode and "goes on" not in said, said
    _same_workdirs(ours, theirs)
    assert not list(ours.glob("progress-*"))

"""Artifacts: what identifies them, and their parameters on disk."""

import fcntl
import gc
import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from undo_jax.data.tokenizers import Characters
from undo_jax.methods.graddiff import graddiff
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.runtime import workdir_lock
from undo_jax.runtime.atomic_files import add_checksum
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.artifacts import Artifact
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

MODEL = preset("2B", layers=2, width=16, feed_forward=32, heads=2, kv_heads=2, head_width=8,
               vocabulary=16)  # fmt: skip
LM = MODEL
CONFIG = {"training": Training(10, 8, AdamW(1e-3), 5), "method": partial(maxent, retain_weight=1.0)}


@pytest.fixture
def mesh():
    return make_mesh(MeshShape(sweep=1, data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def params():
    return jax.jit(LM.init)(jax.random.key(5))


def _artifact(workdir, **changes):
    fields = {"stage": "pretrain", "model": "Base α=0.4", "seed": 3, "config": CONFIG, **changes}
    return Artifact(epath.Path(workdir), **fields)


def _one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def _write(path, params):
    param_checkpoint.save(path, params)
    param_checkpoint.wait_until_saved()


@pytest.fixture
def saved(tmp_path, params):
    artifact = _artifact(tmp_path)
    artifacts.prepare_folder(artifact)
    artifacts.start_saving(artifact, params)
    artifacts.mark_finished(artifact, {"steps": 2})
    return artifact


def test_round_trip_onto_a_mesh(saved, params, mesh):
    assert saved.finished and saved.summary() == {"steps": 2}
    assert {path.name for path in saved.folder.iterdir()} == {
        "config.json", "params", "summary.json"
    }  # fmt: skip
    loaded = artifacts.load_params(saved, LM, mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert jax.tree.map(lambda w: w.sharding, loaded) == shardings(params, LM.rules, mesh)
    assert {w.dtype for w in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}


def test_round_trip_in_a_relative_folder(tmp_path, params, mesh, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifact = _artifact(epath.Path("runs/mine"))
    artifacts.prepare_folder(artifact)
    artifacts.save_artifact(artifact, params, {"score": 0.5})
    jax.tree.map(np.testing.assert_array_equal, artifacts.load_params(artifact, LM, mesh), params)
    relative = epath.Path("runs/mine") / artifact.folder.name / "params"
    jax.tree.map(
        np.testing.assert_array_equal, param_checkpoint.restore(relative, LM, mesh), params
    )
    assert (tmp_path / "runs" / "mine" / artifact.folder.name / "params").is_dir()


def test_bare_parameters_round_trip(tmp_path, params, mesh, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = epath.Path("bare")
    _write(path, params)
    jax.tree.map(np.testing.assert_array_equal, param_checkpoint.restore(path, LM, mesh), params)


def test_an_artifact_without_a_summary_is_not_finished(saved, mesh):
    (saved.folder / "summary.json").unlink()
    assert not saved.finished
    with pytest.raises(FileNotFoundError, match="run stage pretrain first"):
        artifacts.load_params(saved, LM, mesh)


@pytest.mark.parametrize("name", ["params", "bare"])
def test_a_damaged_list_of_arrays_has_a_remedy_that_helps(name, saved, mesh):
    path = Path(saved.folder / "params").rename(saved.folder / name)
    (path / "_METADATA").unlink()
    with pytest.raises(ValueError, match=f"cannot read a checkpoint at {path}: ") as error:
        param_checkpoint.restore(path, LM, mesh)
    told = _one_line(error)
    assert ("of an artifact, give its folder `params`" in told) == (name == "bare")
    assert (f"if it is damaged, delete {saved.folder}, and a run" in told) == (name == "params")


def test_a_damaged_summary_is_named_and_what_to_do(saved):
    (saved.folder / "summary.json").write_text("")
    with pytest.raises(ValueError, match="summary.json is damaged") as error:
        saved.summary()
    assert f"delete {saved.folder}" in _one_line(error)


def _other(text):
    """A summary with another step, and that of another artifact, both well-formed."""
    changed, content = text.replace('"steps": 2', '"steps": 3'), json.loads(text)
    del content["sha256"]
    return changed, json.dumps(add_checksum({**content, "fingerprint": "01234567"}))


@pytest.mark.parametrize("damage", ["", "null", "{}", "[]", "cut", "changed", "another's"])
def test_what_is_no_summary_of_its_own_does_not_finish_an_artifact(damage, saved, capfd):
    path = saved.folder / "summary.json"
    text = path.read_text()
    changed, others = _other(text)
    known = {"cut": text[: len(text) // 2], "changed": changed, "another's": others}
    assert artifacts.is_finished(saved)
    path.write_text(known.get(damage, damage))
    assert not saved.finished and not artifacts.is_finished(saved)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"{saved.folder.name} is made again" in said
    assert (damage == "another's") == ("is of another artifact, 01234567: " in said)


def test_a_summary_vouches_for_the_files_beside_it(saved):
    files = json.loads((saved.folder / "summary.json").read_text())["files"]
    content = (saved.folder / "config.json").read_bytes()
    assert files == {"config.json": hashlib.sha256(content).hexdigest()}


def test_an_artifact_is_finished_once_its_parameters_are_there(tmp_path, params, monkeypatch):
    """And on the disk: the summary is the last to be written."""
    artifact, seen = _artifact(tmp_path), []
    artifacts.prepare_folder(artifact)
    writer, flush = param_checkpoint._checkpointer(), artifacts.fsync_tree
    wait = writer.wait_until_finished

    def see(name, then, *given):
        then(*given)
        made = {path.name for path in artifact.folder.iterdir()}
        seen.append((name, "params" in made, "summary.json" in made))

    monkeypatch.setattr(writer, "wait_until_finished", lambda: see("waited", wait))
    monkeypatch.setattr(artifacts, "fsync_tree", lambda path: see("flushed", flush, path))
    artifacts.save_artifact(artifact, params, {})
    assert seen[-2:] == [("waited", True, False), ("flushed", True, False)]
    assert artifact.finished


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_flipped_bit_of_parameters_is_told_or_changes_nothing(tmp_path, params):
    """A bit in each of many places of every file; most of them are among the arrays."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    path, rng, told = epath.Path(tmp_path) / "bare", np.random.default_rng(0), []
    _write(path, params)
    files = [file for file in Path(path).rglob("*") if file.is_file() and file.stat().st_size]
    arrays = max(files, key=lambda file: file.stat().st_size)
    for file in [*files, *[arrays] * 20]:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            loaded = param_checkpoint.restore(path, LM, mesh)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            told.append(file)
        else:
            jax.tree.map(np.testing.assert_array_equal, loaded, params)
        file.write_bytes(whole)
    gc.collect()  # what was reading when it failed
    assert told.count(arrays) > 15


def test_parameters_that_are_not_those_saved_are_named(saved, mesh, monkeypatch):
    monkeypatch.setattr(param_checkpoint, "digest", lambda params: "00000000")
    with pytest.raises(ValueError, match="its parameters are not those that were saved") as error:
        artifacts.load_params(saved, LM, mesh)
    assert f"delete {saved.folder}, and a run makes it again" in _one_line(error)


def test_a_path_may_be_text_and_another_dtype_is_verified_as_it_was_saved(tmp_path, params, mesh):
    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    _write(epath.Path(tmp_path) / "bf16", rounded)
    loaded = param_checkpoint.restore(str(tmp_path / "bf16"), LM, mesh)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(rounded), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs.astype(jnp.float32))


def test_parameters_of_other_making_have_no_digest(tmp_path, params, mesh):
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "theirs", params)
    loaded = param_checkpoint.restore(tmp_path / "theirs", LM, mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_begin_removes_what_was_left(saved):
    artifacts.prepare_folder(saved)
    assert [path.name for path in saved.folder.iterdir()] == ["config.json"]


def test_foreign_checkpoint_names_the_leaf_and_both_shapes(saved, mesh):
    wider = replace(MODEL, width=32)
    with pytest.raises(ValueError) as error:
        param_checkpoint.restore(saved.folder / "params", wider, mesh)
    message = _one_line(error)
    for part in ("embedding", "(16, 16)", "(16, 32)"):
        assert part in message


def test_missing_path(tmp_path, mesh):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        param_checkpoint.restore(epath.Path(tmp_path / "nothing"), LM, mesh)


@pytest.mark.parametrize("names", [(), ("a.txt",), ("_METADATA",)])
def test_garbage_directory(tmp_path, mesh, names):
    for name in names:
        (tmp_path / name).write_text("not a checkpoint\n\n")
    with pytest.raises(ValueError) as error:
        param_checkpoint.restore(epath.Path(tmp_path), LM, mesh)
    assert f"cannot read a checkpoint at {tmp_path}" in _one_line(error)


def test_damaged_arrays_are_told_in_one_line(saved, mesh, monkeypatch):
    """As Orbax does it; read for real, it would leave threads behind."""

    def fail(*_):
        raise Exception("Encountered\na spec") from ValueError("OUT_OF_RANGE: 7\nin a file")

    monkeypatch.setattr(param_checkpoint._checkpointer(), "restore", fail)
    with pytest.raises(ValueError) as error:
        param_checkpoint.restore(saved.folder / "params", LM, mesh)
    message = _one_line(error)
    assert f"cannot read a checkpoint at {saved.folder / 'params'}: OUT_OF_RANGE: 7; " in message
    assert f"delete {saved.folder}, and a run makes it again" in message


def test_fingerprint_is_of_everything_that_determines_the_model(tmp_path):
    first = _artifact(tmp_path)
    longer = {**CONFIG, "training": replace(CONFIG["training"], steps=11)}
    rate = {**CONFIG, "training": replace(CONFIG["training"], optimizer=AdamW(2e-3))}
    different = [
        first,
        _artifact(tmp_path, seed=4),
        _artifact(tmp_path, stage="unlearn"),
        _artifact(tmp_path, model="other"),
        _artifact(tmp_path, seed=None),
        _artifact(tmp_path, config=longer),
        _artifact(tmp_path, config=rate),
        _artifact(tmp_path, config={**CONFIG, "method": graddiff}),
        _artifact(tmp_path, config={**CONFIG, "method": partial(maxent, retain_weight=2.0)}),
        _artifact(tmp_path, config={**CONFIG, "method": partial(graddiff, retain_weight=1.5)}),
        _artifact(tmp_path, upstream=(first,)),
        _artifact(tmp_path, upstream=(_artifact(tmp_path, config=longer),)),
        _artifact(tmp_path, upstream=(_artifact(tmp_path, seed=9),)),
    ]
    assert len({artifact.fingerprint for artifact in different}) == len(different)
    assert len({artifact.folder for artifact in different}) == len(different)


def test_fingerprint_is_not_of_where_it_is(tmp_path):
    here, there = _artifact(tmp_path), _artifact(tmp_path / "elsewhere")
    assert here.fingerprint == there.fingerprint
    assert here.folder.name == there.folder.name
    assert str(tmp_path) not in str(here.describe())


def test_fingerprint_is_of_a_functions_defaults_too(tmp_path, monkeypatch):
    """Given or left out, a value is the same; edited in the code it is another."""
    named, given = maxent, partial(maxent, retain_weight=1.0)
    found = {_artifact(tmp_path, config={"method": one}).fingerprint for one in (named, given)}
    assert len(found) == 1
    monkeypatch.setattr(maxent, "__kwdefaults__", {"retain_weight": 2.0})
    assert _artifact(tmp_path, config={"method": maxent}).fingerprint not in found
    assert _artifact(tmp_path, config={"method": given}).fingerprint in found


def test_fingerprint_is_of_a_number_however_it_is_written(tmp_path):
    one = _artifact(tmp_path, config={"alphas": (0, 0.5), "seed": 3, "decay": 1.0})
    other = _artifact(tmp_path, config={"alphas": (0.0, np.float64(0.5)), "seed": np.int64(3),
                                        "decay": 1})  # fmt: skip
    assert one.fingerprint == other.fingerprint
    assert json.dumps(other.describe())


def test_config_json_holds_values_as_they_were_typed(tmp_path):
    typed = {
        "cap": 30.0,
        "steps": 30,
        "on": True,
        "none": None,
        "far": float("inf"),
        "few": (1, 2.0),
    }
    artifact = _artifact(tmp_path, config=typed, about={"tokenizer": {"path": "/a"}}, name="base")
    artifacts.prepare_folder(artifact)
    assert artifact.folder == tmp_path / "base"
    content = json.loads((tmp_path / "base" / "config.json").read_text())
    assert content["tokenizer"] == {"path": "/a"} and content["fingerprint"] == artifact.fingerprint
    wanted = {**typed, "few": [1, 2.0]}
    assert repr(content["config"]) == repr(wanted)  # 30.0 is not 30, nor true 1
    assert artifact.fingerprint == _artifact(tmp_path / "other", config=typed).fingerprint


def test_a_function_without_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a setting is a lambda of .*: define it by def"):
        _artifact(tmp_path, config={"method": lambda: None}).describe()


def test_a_workdir_that_another_process_writes_into(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "PATIENCE", 0)
    workdir = epath.Path(tmp_path / "new" / "run")
    workdir.mkdir(parents=True)
    other = os.open(workdir, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # as if it were another process
    with (
        pytest.raises(OSError, match="another process writes into .*new/run: wait") as error,
        workdir_lock.lock_workdir(workdir),
    ):
        raise AssertionError("it went on")
    assert _one_line(error) and not list(workdir.iterdir())
    os.close(other)
    for _ in range(2):  # the second time this process has it
        with workdir_lock.lock_workdir(workdir):
            pass
    with pytest.raises(BlockingIOError):
        fcntl.flock(os.open(workdir, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_that_does_not_see_the_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    artifact = _artifact(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        artifacts.prepare_folder(artifact)
    assert _one_line(error) == (
        f"process 1 does not see {artifact.folder} of process 0: give a workdir that all share, "
        "e.g. in a bucket"
    )


def test_a_setting_is_written_as_it_is(tmp_path):
    """With the names of its types and functions: a constant, as fingerprints are made of it."""
    training = Training(10, 8, AdamW(1e-3), 5)
    adam = {
        "type": "AdamW", "learning_rate": 0.001, "warmup": 0, "decay": "constant", "end": 0.1,
        "b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "weight_decay": 0, "clip": 1,
        "first_moment": "float32",
    }  # fmt: skip
    assert artifacts.to_json(training) == {
        "type": "Training", "steps": 10, "batch_size": 8, "optimizer": adam, "eval_every": 5,
        "accumulation": 1,
    }  # fmt: skip
    method = partial(maxent, "positional", retain_weight=0.5)
    assert artifacts.to_json({"method": method, 3: (np.float32(2), [True, None, "x"])}) == {
        "method": {"function": "undo_jax.methods.maxent.maxent", "positional": ["positional"],
                   "retain_weight": 0.5},
        "3": [2, [True, None, "x"]],
    }  # fmt: skip
    assert artifacts.to_json(partial(len, "x")) == {
        "function": "builtins.len", "positional": ["x"]
    }  # fmt: skip
    assert artifacts.to_json(AdamW) == "undo_jax.training.optim.AdamW"
    tokenizer = Characters("ab")
    assert artifacts.to_json(tokenizer) == {
        "type": "Characters", "fingerprint": tokenizer.fingerprint
    }  # fmt: skip


def test_a_run_that_fails_leaves_no_empty_workdir_and_locks_the_next_one(tmp_path):
    """The folder that is made anew is another one, and locked in its turn."""
    workdir = epath.Path(tmp_path / "new" / "run")
    for _ in range(2):
        with pytest.raises(ValueError, match="bad input"), workdir_lock.lock_workdir(workdir):
            with pytest.raises(BlockingIOError):
                fcntl.flock(os.open(workdir, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise ValueError("bad input")
        assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="later"), workdir_lock.lock_workdir(workdir):
        (workdir / "artifact").mkdir()
        raise ValueError("later")
    assert (workdir / "artifact").is_dir()


def test_fingerprint_is_the_same_in_every_process(tmp_path):
    """A constant: if it changes, every workdir there is loses its artifacts."""
    artifact = Artifact(epath.Path(tmp_path), "pretrain", "base", 0, {"rate": 0.1, "on": (True,)})
    assert artifact.folder.name == "pretrain-base-seed0-a5791f6c"

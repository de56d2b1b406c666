"""A teacher's states are computed once, and its students train as beside the teacher."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flipped_bits import flipped_bits

from undo_jax.data import row_files, states
from undo_jax.data.arithmetic import Grammar
from undo_jax.data.states import StatesSpec, finish_states, open_states, unwritten, write_file
from undo_jax.data.streams import stream
from undo_jax.graph.model_graph import train_spec
from undo_jax.losses import (
    activation_distillation,
    distillation,
    jsd_distillation,
    reverse_distillation,
)
from undo_jax.models.gemma2 import preset
from undo_jax.models.head_only import HeadOnly
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.runner import experiment as experiments
from undo_jax.runner import teacher_cache
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.teacher_cache import possible
from undo_jax.runtime import signals
from undo_jax.runtime.mesh import MeshShape, make_mesh, parse_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import artifacts
from undo_jax.training import train_step
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training
from undo_jax.types import Frozen, Packed, Rows

GRAMMAR = Grammar(largest_term=6, largest_factor=5, spaced=False, held_out=0.0)
SETTING = Arithmetic(grammar=GRAMMAR, forms=("equation",), problems=200, row_length=12,
                     examine="train_facts", questions=2, validation_rows=1)  # fmt: skip
HOW = Training(4, 8, AdamW(1e-2, epsilon=1e-3), 2)
LM = preset("tiny")
STUDENT = replace(LM, width=LM.width // 2)
BASE = Pretrain(LM, HOW)
ABOUT = StatesSpec("a model", "its numbers", "its rows", 10, 3, 2, "float32")
VALUES = np.arange(60, dtype=np.float32).reshape(10, 3, 2)


def _student(loss=distillation, lm=STUDENT, teacher: Any = BASE):
    return Distill(teacher, Fresh(lm), HOW, stop_early=False, loss=loss)


def _experiment(models, **changes):
    how = {"seeds": (0, 1), "mesh": MeshShape(sweep=2, data=2, fsdp=2), **changes}
    return Experiment("toy", SETTING, models, **how)


# ------------------------------------------------------------------------- a loss and its gradient


@pytest.mark.parametrize(
    "loss",
    [
        distillation,
        pytest.param(reverse_distillation, marks=pytest.mark.slow),
        pytest.param(jsd_distillation, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "shape", ["data=1", pytest.param("data=2,fsdp=2,tensor=2", marks=pytest.mark.slow)]
)
def test_loss_and_gradient_are_those_beside_the_teacher(loss, shape):
    sizes = parse_mesh(shape)
    count = sizes.data * sizes.fsdp * sizes.tensor
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, LM.vocabulary, (4, 13)))
    teacher, params = LM.init(jax.random.key(1)), STUDENT.init(jax.random.key(2))
    with jax.set_mesh(make_mesh(sizes, jax.devices()[:count])):
        known = np.asarray(jax.jit(LM.hidden)(teacher, tokens[:, :-1]))

        def run(frozen, packed):
            def objective(params):
                batch = {"train": train_step.rows(packed)}
                return loss(STUDENT, params, {"teacher": frozen}, batch, jax.random.key(0))[0]

            return jax.jit(jax.value_and_grad(objective))(params)

        beside = run(Frozen(LM, teacher), tokens)
        head = HeadOnly(LM)
        cached = run(Frozen(head, head.head(teacher)), Packed(tokens, states=known))
    assert beside[0] > 0.1
    for one, other in zip(*map(jax.tree.leaves, (beside, cached)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_which_losses_read_no_more_than_states():
    def reads(recipe: Any):
        return possible(train_spec(recipe, SETTING))

    def of(loss, lm=STUDENT):
        return reads(_student(loss, lm))

    assert of(distillation) and of(jsd_distillation) and of(partial(distillation, temperature=2.0))
    assert not of(activation_distillation, LM)
    assert not reads(BASE)


# ------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same experiment, with and without stored states."""
    made = {}
    models = {"base": BASE, "small": _student(), "as large": _student(lm=LM)}
    for cached in (False, True):
        workdir = tmp_path_factory.mktemp("cached" if cached else "beside")
        found = experiments.run(_experiment(models), workdir, cache_teachers=cached)
        made[cached] = epath.Path(workdir), found
    return made


@pytest.mark.slow
def test_students_are_those_beside_the_teacher(runs):
    (_, beside), (_, cached) = runs[False], runs[True]
    mesh = make_mesh(MeshShape())
    for name in ("small", "as large"):
        for one, other in zip(beside[name, None], cached[name, None], strict=True):
            assert one.artifact.fingerprint == other.artifact.fingerprint
            pair = [artifacts.load_params(m.artifact, m.recipe.lm, mesh) for m in (one, other)]
            for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
            scores = [m.artifact.summary()["eval"]["cross_entropy/retain"] for m in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
def test_states_are_of_all_rows(runs):
    workdir, found = runs[True]
    folders = sorted(workdir.glob("states-*"))
    assert len(folders) == 2 and not list(runs[False][0].glob("states-*"))  # one for each seed
    rows = SETTING.stream("pretrain", 8, 0).sources[0].tokens
    for model in found["base", None]:
        params = artifacts.load_params(model.artifact, LM, make_mesh(MeshShape()))
        wanted = np.asarray(LM.hidden(params, jnp.asarray(rows[:, :-1])))
        folder = next(f for f in folders if _about(f)["model"] == model.artifact.fingerprint)
        about = StatesSpec(**_about(folder))
        assert (about.count, about.length, about.width) == wanted.shape
        np.testing.assert_allclose(open_states(folder, about)[:], wanted, atol=1e-5)


def _about(folder):
    return json.loads((folder / "manifest.json").read_text())["about"]


@pytest.mark.slow
def test_stored_states_are_read_and_not_computed_again(runs, tmp_path, monkeypatch):
    """The teacher's states are replaced: a student that reads them learns from these."""
    workdir = epath.Path(shutil.copytree(runs[True][0], tmp_path / "runs"))
    for folder in workdir.glob("states-*"):
        about = StatesSpec(**_about(folder))
        folder.rmtree()
        zeros = np.zeros((about.count, about.length, about.width), np.float32)
        for number, (first, end) in enumerate(about.files):
            write_file(folder, number, iter([zeros[first:end]]))
        finish_states(folder, about)
    for folder in workdir.glob("distill-*"):
        folder.rmtree()
    models = {"base": BASE, "small": _student()}
    found = experiments.run(_experiment(models), workdir, cache_teachers=True)
    for model in found["small", None]:
        (beside,) = [
            m for m in runs[False][1]["small", None] if m.artifact.seed == model.artifact.seed
        ]
        scores = [m.artifact.summary()["eval"]["cross_entropy/retain"] for m in (model, beside)]
        assert abs(scores[0] - scores[1]) > 0.01


@pytest.mark.slow
def test_a_loss_that_reads_more_trains_beside_the_teacher(tmp_path):
    models = {"base": BASE, "states too": _student(activation_distillation, LM)}
    experiments.run(_experiment(models, seeds=(0,)), tmp_path, cache_teachers=True)
    assert not list(tmp_path.glob("states-*"))


def test_a_stream_without_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("undo_jax.data.streams.RowBatches.with_states", property(_absent))
    with pytest.raises(ValueError, match=r"^the setting's stream pretrain does not say which rows"):
        models = {"base": BASE, "small": _student()}
        experiments.run(_experiment(models, seeds=(0,)), tmp_path, cache_teachers=True)
    assert not list(tmp_path.glob("pretrain-*"))  # nothing has trained yet


def _absent(self):
    raise AttributeError("with_states")


# --------------------------------------------------------------------------------------- on disk


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Ten rows in files of three."""
    monkeypatch.setattr(states, "FILE_BYTES", 3 * 24)
    folder = epath.Path(tmp_path / "states")
    for number, (first, end) in enumerate(ABOUT.files):
        write_file(folder, number, iter([VALUES[first : first + 1], VALUES[first + 1 : end]]))
    finish_states(folder, ABOUT)
    yield folder
    row_files._random_access_reader.cache_clear()


def test_rows_come_back_in_any_order(stored):
    found = open_states(stored, ABOUT)
    assert len(found) == 10 and found.shape == (10, 3, 2) and len(found.files) == 4
    order = np.array([9, 0, 5, 5, 3])
    np.testing.assert_array_equal(found[order], VALUES[order])
    np.testing.assert_array_equal(found[2:7], VALUES[2:7])
    assert sorted(path.name for path in stored.iterdir()) == [
        *(f"{n:05d}.array_record" for n in range(4)), "manifest.json",
    ]  # fmt: skip


def test_bf16_comes_back_bit_for_bit(tmp_path):
    values = jnp.asarray(VALUES / 7, jnp.bfloat16)
    about = replace(ABOUT, dtype="bfloat16")
    write_file(epath.Path(tmp_path), 0, iter([np.asarray(values)]))
    finish_states(epath.Path(tmp_path), about)
    found = open_states(epath.Path(tmp_path), about)[:]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.view(np.uint16), np.asarray(values).view(np.uint16))


def test_writing_goes_on_where_it_stopped(stored):
    (stored / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError):
        open_states(stored, ABOUT)
    assert unwritten(stored, ABOUT) == [True] * 4  # its notes are gone: all are written again
    write_file(stored, 1, iter([VALUES[3:6]]))
    assert unwritten(stored, ABOUT) == [True, False, True, True]
    (stored / "00001.array_record").write_bytes(b"cut")
    assert unwritten(stored, ABOUT) == [True] * 4


def test_what_is_half_written_leaves_the_disk(tmp_path):
    def full():
        yield VALUES[:1]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = epath.Path(tmp_path)
    (folder / "unfinished").mkdir()
    (folder / "unfinished/00001.array_record.1.tmp").write_text("of a process that was killed")
    with pytest.raises(OSError, match="No space left"):
        write_file(folder, 0, full())
    assert [path.name for path in tmp_path.rglob("*")] == ["unfinished"]


@pytest.mark.slow
def test_ctrl_c_stops_after_a_file_of_states(tmp_path, monkeypatch):
    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        write_file(*given)

    monkeypatch.setattr(teacher_cache, "write_file", interrupted)
    models = {"small": _student(teacher=Fresh(LM))}
    with pytest.raises(KeyboardInterrupt) as stopped:
        how = {"seeds": (0,), "mesh": MeshShape()}
        experiments.run(_experiment(models, **how), tmp_path, cache_teachers=True)
    said = "interrupted, after a file of states; the same command goes on"
    assert signals.describe_stop(stopped.value) == said
    (folder,) = tmp_path.glob("states-*")
    assert (folder / "00000.array_record").exists() and not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "another"), ("parameters", "other numbers"), ("rows", "other rows"), ("count", 11),
     ("length", 4), ("width", 3), ("dtype", "bfloat16")],
)  # fmt: skip
def test_states_of_something_else_are_refused(stored, field, value):
    with pytest.raises(ValueError, match=f"holds states of another {field}: delete .*states, and"):
        open_states(stored, replace(ABOUT, **{field: value}))


def test_cut_and_missing_files_are_refused(stored):
    path = stored / "00002.array_record"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"00002.array_record has \d+ bytes and not \d+: delete"):
        open_states(stored, ABOUT)
    path.unlink()
    with pytest.raises(ValueError, match=r"00002.array_record has 0 bytes and not"):
        open_states(stored, ABOUT)


def test_a_damaged_manifest_is_refused(stored):
    path = stored / "manifest.json"
    text = path.read_text()
    unsealed = {"about": vars(ABOUT), "files": [{"name": "00000.array_record"}] * 4}
    others = [json.dumps(unsealed), json.dumps({**unsealed, "files": [1, 2, 3, 4]})]
    cut = [text[:-5], "{}", "null", text.replace('"rows": 3', '"rows": 2')]
    for damaged in cut + others:
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"delete .*, and a run makes them again$"):
            open_states(stored, ABOUT)


def test_a_flipped_bit_is_told_or_changes_nothing(stored):
    told = 0
    for _ in flipped_bits(Path(stored), 20):
        try:
            found = open_states(stored, ABOUT)[:]
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and str(stored) in str(error)
            told += 1
        else:
            np.testing.assert_array_equal(found, VALUES)
    assert told > 15


def test_batches_carry_the_states_of_their_rows():
    rows = np.arange(50, dtype=np.int32).reshape(10, 5)
    batches = stream([rows, 100 + rows], 4, seed=3)
    known = [np.repeat(source.tokens[:, :4, None], 2, -1) / 2 for source in batches.sources]
    for step in (0, 7):
        plain, packed = batches[step], batches.with_states(known)[step]
        np.testing.assert_array_equal(packed.tokens, plain)
        np.testing.assert_array_equal(packed.states[..., 1], plain[:, :4] / 2)
        some = batches.with_states(known)[step, 1:3]
        np.testing.assert_array_equal(some.states, packed.states[1:3])
        assert isinstance(train_step.rows(packed), Rows)

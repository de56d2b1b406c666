"""The plan of a run: what would be made and reused, and what it costs, without making anything."""

import json
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

import undo_jax
from undo_jax.attacks.forget import forget
from undo_jax.cli import main as cli
from undo_jax.cli.plan import duration, shortened, table
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner import dry_run as planning
from undo_jax.runner import experiment_checks
from undo_jax.runner.dry_run import make_row, plan_groups, plan_run
from undo_jax.runner.experiment import Experiment, prepared
from undo_jax.runner.time_estimate import Pace, estimate_paces, read_records
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import progress_folders
from undo_jax.store.artifacts import mark_finished, prepare_folder
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
SETTING = Arithmetic(problems=50, row_length=24, forms=("equation",), examine="train_facts",
                     questions=2, validation_rows=1)  # fmt: skip
LM = preset("tiny", layers=1, width=8, feed_forward=8, heads=1, kv_heads=1, head_width=8,
            vocabulary=24)  # fmt: skip
HOW = Training(10, 8, AdamW(1e-3), eval_every=4)
BASE = Pretrain(LM, HOW)
UNLEARNED = Unlearn(BASE, replace(HOW, steps=6))
STUDENT = Distill(UNLEARNED, Fresh(LM), replace(HOW, steps=20))
EXPERIMENT = Experiment(
    name="small",
    setting=SETTING,
    models={"base": BASE, "unlearned": UNLEARNED, "distilled": STUDENT},
    attacks=(forget(replace(HOW, steps=3), (1.0, 2.0, 3.0)),),
    attacked=("unlearned", "distilled"),
    seeds=(0, 1, 2),
    mesh=MeshShape(sweep=2, data=4),
)
PACE = Pace(step=2.0, start=100.0)


@pytest.fixture
def known(monkeypatch):
    """Every group has the same pace."""
    monkeypatch.setattr(
        planning, "estimate_paces", lambda run, each, records: dict.fromkeys(each, PACE)
    )


def _finish(models):
    """Mark models as finished, without training them."""
    for model in models:
        prepare_folder(model.artifact)
        (model.artifact.folder / "params").mkdir()
        mark_finished(model.artifact, {"eval": {}})


def _models(workdir, kind):
    with prepared(EXPERIMENT, workdir) as found:
        return [model for model in found.models if model.recipe.kind == kind]


def test_what_is_made_by_hand(tmp_path, known):
    """Three seeds on two groups of devices take two turns; the attack has three rates."""
    workdir = tmp_path / "not there"
    made = {one.kind: one for one in plan_run(EXPERIMENT, workdir).rows}
    assert not workdir.exists()
    assert list(made) == ["pretrain", "unlearn", "noise", "distill", "relearn"]
    assert [(one.new, one.reused) for one in made.values()] == [(3, 0)] * 4 + [(6, 0)]
    assert [one.trials for one in made.values()] == [3, 3, 0, 3, 18]
    assert [one.steps for one in made.values()] == [10, 6, 0, 20, 3]
    assert [one.stops for one in made.values()] == [False, False, False, True, False]
    assert made["pretrain"].names == ("base",)
    assert made["relearn"].names == ("unlearned", "distilled")
    assert made["pretrain"].seconds == pytest.approx(100 + 2 * 10 * 2)
    assert made["relearn"].seconds == pytest.approx(100 + 9 * 3 * 2)  # 18 trials in 9 turns
    # a token meets 4 × 8 × 8 weights of attention, 3 × 8 × 8, and 24 × 8 of the head, and
    # attends to 24 others, twice; forward and backward are three forward passes
    forward = 2 * (4 * 8 * 8 + 3 * 8 * 8 + 24 * 8 + 2 * 24 * 8)
    assert made["pretrain"].flops == 3 * 10 * 8 * 24 * 3 * forward
    assert made["distill"].flops == 3 * 20 * 8 * 24 * (3 + 1) * forward
    assert made["noise"].flops == made["noise"].seconds == 0


def test_what_a_stored_teacher_would_save_by_hand(tmp_path, known):
    """The head's 24 × 8 weights stay; three teachers run over all rows once. States are fp32."""
    rows = len(SETTING.stream("pretrain", 8, 0).sources[0].tokens)
    forward, head = 2 * (4 * 8 * 8 + 3 * 8 * 8 + 24 * 8 + 2 * 24 * 8), 2 * 24 * 8
    trained, stored = 3 * 20 * 8 * 24, 3 * rows * 24
    wanted = (trained * (3 * forward + head) + stored * forward) / (trained * 4 * forward)
    made = {one.kind: one for one in plan_run(EXPERIMENT, tmp_path).rows}
    assert wanted < 1 and made["distill"].cached.share == pytest.approx(wanted)
    assert made["distill"].cached.bytes == stored * 8 * 4
    assert [kind for kind, one in made.items() if one.cached] == ["distill"]
    short = replace(STUDENT, training=replace(STUDENT.training, steps=1))
    once = replace(EXPERIMENT, models={**EXPERIMENT.models, "distilled": short})
    assert not any(one.cached for one in plan_run(once, tmp_path).rows)  # it costs more


def test_what_is_finished_is_reused_and_costs_nothing(tmp_path, known):
    base = _models(tmp_path, "pretrain")
    _finish([*base, *_models(tmp_path, "unlearn")[:1]])
    rows = plan_run(EXPERIMENT, tmp_path).rows
    assert [(one.kind, one.new, one.reused) for one in rows] == [
        ("pretrain", 0, 3), ("unlearn", 2, 1), ("noise", 3, 0), ("distill", 3, 0), ("relearn", 6, 0)
    ]  # fmt: skip
    assert rows[0].seconds == rows[0].flops == rows[0].trials == 0
    assert rows[1].trials == 2


def test_no_more_train_at_once_than_are_allowed(tmp_path, known):
    """Of four trials at most, one attacked model has three."""
    rows = plan_run(replace(EXPERIMENT, together=4), tmp_path).rows
    assert [one.trials for one in rows if one.kind == "relearn"] == [3] * 6
    rows = plan_run(replace(EXPERIMENT, together=2), tmp_path).rows
    alone = [one for one in rows if one.kind == "relearn"]  # two rates side by side, then one
    assert {one.seconds for one in alone} == {2 * (100 + 3 * 2)}


def test_a_finished_model_without_parameters_is_made_again_where_they_are_needed(tmp_path, known):
    base, *_ = _models(tmp_path, "pretrain")
    unlearned, *others = _models(tmp_path, "unlearn")
    _finish([base, unlearned])
    (base.artifact.folder / "params").rmdir()
    rows = {row.kind: row for row in plan_run(EXPERIMENT, tmp_path).rows}
    assert (rows["pretrain"].new, rows["unlearn"].new) == (2, 2)  # of three seeds, no child waits
    (unlearned.artifact.folder / "params").rmdir()  # its students need it, and it needs the base
    rows = {row.kind: row for row in plan_run(EXPERIMENT, tmp_path).rows}
    assert (rows["pretrain"].new, rows["unlearn"].new) == (3, 3)


def test_a_finished_model_trains_along_in_an_interrupted_company(tmp_path):
    models = _models(tmp_path, "pretrain")
    _finish(models[:1])
    progress_folders.make_progress_folder([model.artifact for model in models[:2]])
    with prepared(EXPERIMENT, tmp_path, "pretrain") as found:
        some = plan_groups(found.run, found.models, found.selected)
        rows = [make_row(one, found.run, PACE, found.named) for one in some]
    assert [(one.new, one.trials) for one in rows] == [(1, 2), (1, 1)]
    assert sum(one.reused for one in rows) == 1


def test_one_model_or_one_kind(tmp_path, known):
    rows = plan_run(EXPERIMENT, tmp_path, name="unlearned").rows
    assert [(one.kind, one.new) for one in rows] == [
        ("pretrain", 3),
        ("unlearn", 3),
        ("relearn", 3),
    ]
    assert [one.kind for one in plan_run(EXPERIMENT, tmp_path, "pretrain").rows] == ["pretrain"]
    with pytest.raises(FileNotFoundError, match="run stage unlearn first"):
        plan_run(EXPERIMENT, tmp_path, "relearn")


def _write(model, trials, tokens=1000, flops=5e6, steps=10, seconds=0):
    """The records and the summary of a finished model: (rate, its first and last speed)."""
    prepare_folder(model.artifact)
    (model.artifact.folder / "params").mkdir()
    lines = [
        {"step": step, "tokens_per_second": speed, **({"learning_rate": rate} if rate else {})}
        for rate, *speeds in trials
        for step, speed in zip((10, 20, 30), (0.0, *speeds), strict=False)
    ]
    text = "\n".join(json.dumps(line) for line in [{"step": 0, "eval": {}}, *lines])
    (model.artifact.folder / "metrics.jsonl").write_text(text)
    mark_finished(model.artifact, {"steps": steps, "tokens": tokens, "flops": flops, "eval": {}})
    for name, at in (("config", 1000), ("summary", 1000 + seconds)):
        os.utime(model.artifact.folder / f"{name}.json", (at, at))


def test_records_of_a_population_by_hand(tmp_path):
    """Two models that trained together, of which one ended early, and one that trained alone."""
    one, other, alone = _models(tmp_path, "pretrain")
    _write(one, [(None, 400.0)])
    _write(other, [(None, 400.0, 500.0)])
    _write(alone, [(None, 300.0)])
    found = sorted(read_records(epath.Path(tmp_path)), key=lambda record: record.trials)
    assert [(r.trials, r.rate, r.cost) for r in found] == [(1, 300.0 * 5e3, 5e3),
                                                            (2, 500.0 * 5e3, 5e3)]  # fmt: skip
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    assert len(read_records(epath.Path(tmp_path))) == 2


def test_a_pace_by_records(tmp_path):
    """Six attacks took three turns on two groups: 20 s for each 1000 FLOPs of all of them."""
    attacks = _models(tmp_path, "relearn")
    _write(attacks[0], [(rate, 50.0) for rate in (1e-3, 2e-3, 3e-3)], flops=1000.0)
    _write(attacks[1], [(rate, 50.0) for rate in (1e-3, 2e-3, 3e-3)], flops=1000.0)
    (record,) = read_records(epath.Path(tmp_path))
    assert (record.trials, record.rate) == (6, 50.0)
    with prepared(EXPERIMENT, tmp_path) as found:
        (known,) = estimate_paces(found.run, {"": attacks[2]}, [record]).values()
        other = record._replace(like="other")
        assert estimate_paces(found.run, {"": attacks[2]}, [other]) == {"": None}
    forward = 2 * (4 * 8 * 8 + 3 * 8 * 8 + 24 * 8 + 2 * 24 * 8)
    each = 8 * 24 * 3 * forward  # FLOPs of a step
    assert known.step == pytest.approx(6 * each / 50.0 / 3)


def test_what_comes_before_the_first_steps_by_hand(tmp_path):
    """Of 3000 tokens in 30 steps, a trial had 1000 from step 10 to 20, the other 2000 to 30.

    All at 500 tokens/s took 6 of 16 seconds.
    """
    one, other, _ = _models(tmp_path, "pretrain")
    _write(one, [(None, 400.0)], tokens=3000, steps=30, seconds=16)
    _write(other, [(None, 400.0, 500.0)], tokens=3000, steps=30, seconds=17)
    (record,) = read_records(epath.Path(tmp_path))
    assert record.start == pytest.approx(10)
    os.utime(one.artifact.folder / "summary.json", (1002, 1002))
    assert read_records(epath.Path(tmp_path))[0].start == 0  # a copy has other times


def test_a_stop_rule_is_expected_to_end_trainings_as_it_has_ended_others(tmp_path, monkeypatch):
    """Of at most 20 steps, two seeds took 8 and 12."""
    one, other, left = _models(tmp_path, "distill")
    _write(one, [(None, 50.0)], steps=8)
    _write(other, [(None, 50.0, 60.0)], steps=12)
    with prepared(EXPERIMENT, tmp_path) as found:
        records = read_records(epath.Path(tmp_path))
        (known,) = estimate_paces(found.run, {"": left}, records).values()
        patient = [record._replace(stop_early=False) for record in records]
        (whole,) = estimate_paces(found.run, {"": left}, patient).values()
    assert known.fraction == pytest.approx(0.5) and whole.fraction == 1
    assert known.step == whole.step
    monkeypatch.setattr(
        planning, "estimate_paces", lambda run, each, records: dict.fromkeys(each, known)
    )
    rows = {row.kind: row for row in plan_run(EXPERIMENT, tmp_path).rows}
    assert rows["distill"].seconds == pytest.approx(10 * known.step)


def test_without_a_training_that_is_alike_the_time_is_not_known(tmp_path):
    rows = {row.kind: row for row in plan_run(EXPERIMENT, tmp_path).rows}
    assert rows["pretrain"].seconds is None and rows["pretrain"].flops > 0
    assert rows["noise"].seconds == 0  # nothing trains


def test_a_plan_is_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys, known):
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    flags = "--setting.problems 200 --setting.questions 2 --mesh sweep=8 --plan".split()
    cli.main(["run", QUICKSTART, "--seeds", "0", *flags])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert not list(tmp_path.iterdir())
    cells = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert cells["pretrain"][1:7] == ["base,", "oracle", "2", "0", "2", "1,000"]
    assert "≤" in cells["distill"] and "≤:" in cells
    assert cells["all"][1:4] == ["23", "0", "55"]
    assert re.search(r"^--cache-teachers: \d+ % of these FLOPs, .* on disk: UNDO", out, re.M)
    assert max(map(len, lines)) <= 80 and "time: as finished trainings" in out


def test_a_plan_without_records_has_no_times(tmp_path):
    lines = table("small", plan_run(EXPERIMENT, tmp_path))
    assert lines.columns[7].footer == "?"
    assert list(lines.columns[7].cells) == ["?", "?", "–", "?", "?"]
    assert "?: no training that is alike has finished" in str(lines.caption)


def test_rows_that_are_waited_for_are_named(tmp_path, monkeypatch, known):
    """A million problems take a minute a stream."""
    named = []

    @contextmanager
    def waiting(what):
        named.append(what)
        yield

    monkeypatch.setattr(experiment_checks, "show_waiting", waiting)
    plan_run(EXPERIMENT, tmp_path)
    streams = "forget", "pretrain", "retain"
    assert dict.fromkeys(named) == dict.fromkeys(f"rows of the stream {s}" for s in streams)


def test_cells():
    assert shortened(["base", "oracle"]) == "base, oracle"
    assert shortened(["UNDO α=0.4", "UNDO α=0.6", "oracle"]) == "UNDO α=0.4 +2"
    assert shortened(["a name that is too long for it", "b"]) == "a name that is… +1"
    told = [duration(s) for s in (0, 0.4, 42.4, 89, 90, 5400, 5 * 3600.0, 2 * 86400.0)]
    assert told == ["0 s", "< 1 s", "42 s", "89 s", "1.5 min", "1.5 h", "5.0 h", "2.0 d"]

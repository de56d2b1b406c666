"""`undo-jax run --scores` and `undo-jax score`: scores.json of each finished model, no training."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from undo_jax.cli import main as cli
from undo_jax.runner import score_models

EXPERIMENT = """
from dataclasses import replace
from functools import partial

from undo_jax.data.arithmetic import Grammar
from undo_jax.attacks.forget import forget
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

lm = preset("2B", layers=2, width=16, feed_forward=32, heads=2, kv_heads=2, head_width=8,
            vocabulary=24, dtype="float32")
training = Training(3, 8, AdamW(0.01), eval_every=2)
base = Pretrain(lm, training)
unlearned = Unlearn(base, training, maxent)
student = Perturb(unlearned, 0.5, shrink_perturb)


def layers_of(lm, params, setting, *, factor=1.0):
    return {"layers": factor * lm.layers}


experiment = Experiment(
    name="toy",
    setting=Arithmetic(
        grammar=Grammar(largest_term=12, largest_factor=9, spaced=False, held_out=0.0),
        forms=("equation",), problems=200, row_length=16, examine="train_facts", questions=2,
        validation_rows=1,
    ),
    models={"base": base, "unlearned": unlearned,
            "student": Distill(unlearned, student, training),
            "oracle": Pretrain(lm, training, "oracle")},
    attacks=(forget(training, (1.0,)),),
    oracle="oracle",
)
"""
MODELS = 8  # that are scored: four, and an attack on each


@pytest.fixture(autouse=True)
def in_process(monkeypatch, tmp_path):
    """The tests' devices are ready; the current folder is empty but for the experiment's file."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(EXPERIMENT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir whose run computed no scores."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("toy.py").write_text(EXPERIMENT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
            cli.main(["run", "toy.py", "--workdir", "out", "--seeds", "3"])
    finally:
        os.chdir(before)
    return folder / "out"


@pytest.fixture
def workdir(finished):
    """A copy of it in the current folder."""
    return Path(shutil.copytree(finished, "out"))


def _stored(workdir):
    """The values in the scores.json of each artifact, by folder."""
    return {
        path.parent.name: {
            name: entry["values"] for name, entry in json.loads(path.read_text())["scores"].items()
        }
        for path in sorted(Path(workdir).glob("*/scores.json"))
    }


def _bytes(workdir, *names):
    return {
        path: path.read_bytes()
        for path in sorted(Path(workdir).glob("*/*"))
        if path.name in names
    }  # fmt: skip


def _refused(capsys, *words):
    """The one line in which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and lines[-1].startswith("undo-jax: "), lines
    return lines[-1]


def test_scores_are_added_to_all_finished_models_without_training(workdir, capsys):
    before = _bytes(workdir, "summary.json", "metrics.jsonl", "config.json")
    assert not _stored(workdir)
    cli.main(["score", "out", "parameter_norm", "cross_entropy"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "parameter_norm, cross_entropy: computed for 8 models, 0 had all; `undo-jax report out` "
        "shows them"
    )
    stored = _stored(workdir)
    assert len(stored) == MODELS and not any(name.startswith("noise-") for name in stored)
    assert all(
        scores.keys() == {"parameter_norm", "cross_entropy"}
        and scores["cross_entropy"].keys() == {"retain", "forget"}
        and all(math.isfinite(x) for values in scores.values() for x in values.values())
        for scores in stored.values()
    )
    assert len({scores["cross_entropy"]["forget"] for scores in stored.values()}) == MODELS
    assert _bytes(workdir, "summary.json", "metrics.jsonl", "config.json") == before


def test_what_is_stored_is_computed_only_again_if_asked(workdir, capsys, monkeypatch):
    cli.main(["score", "out", "parameter_norm"])
    written = _bytes(workdir, "scores.json")
    calls = []
    compute = score_models.compute_score
    monkeypatch.setattr(
        score_models, "compute_score", lambda *given: calls.append(given) or compute(*given)
    )
    capsys.readouterr()
    cli.main(["score", "out", "parameter_norm"])
    assert "computed for 0 models, 8 had all" in capsys.readouterr().out and not calls
    cli.main(["score", "out", "parameter_norm", "--again"])
    assert len(calls) == MODELS and _bytes(workdir, "scores.json") == written
    next(workdir.glob("unlearn-*/scores.json")).unlink()
    cli.main(["score", "out", "parameter_norm"])
    assert len(calls) == MODELS + 1 and _bytes(workdir, "scores.json") == written


def test_a_run_computes_the_scores_of_its_experiment(workdir, capsys):
    """Also those of models that were finished without them; others are added by a flag."""
    text = EXPERIMENT.replace('oracle="oracle",', 'oracle="oracle", scores=(layers_of,),')
    Path("toy.py").write_text(text)
    run = ["run", "toy.py", "--workdir", "out", "--seeds", "3"]
    before = _bytes(workdir, "summary.json")
    cli.main(run)
    assert set(map(str, _stored(workdir).values())) == {"{'layers_of': {'layers': 2.0}}"}
    cli.main([*run, "--scores", "parameter_norm"])
    assert all(s.keys() == {"layers_of", "parameter_norm"} for s in _stored(workdir).values())
    assert _bytes(workdir, "summary.json") == before
    cli.main(["run", "toy.py", "--workdir", "new", "--seeds", "3", "--scores", "parameter_norm"])
    new, old = _stored("new"), _stored(workdir)
    assert new.keys() == old.keys()
    for folder, scores in new.items():
        assert scores["parameter_norm"] == pytest.approx(old[folder]["parameter_norm"], rel=1e-4)


def test_a_score_of_the_experiments_own_with_other_options_is_computed_again(workdir):
    text = EXPERIMENT.replace('oracle="oracle",', 'oracle="oracle", scores=(layers_of,),')
    Path("toy.py").write_text(text)
    cli.main(["score", "out", "layers_of"])
    Path("toy.py").write_text(text.replace("(layers_of,)", "(partial(layers_of, factor=2.0),)"))
    cli.main(["score", "out", "layers_of"])
    assert set(map(str, _stored(workdir).values())) == {"{'layers_of': {'layers': 4.0}}"}


def test_an_interrupted_run_goes_on_with_the_models_that_lack_scores(capsys, monkeypatch):
    """It is stopped between two models; the scores are those of a run that is not stopped."""
    run = ["run", "toy.py", "--seeds", "3", "--scores", "parameter_norm", "--workdir"]
    cli.main([*run, "whole"])
    write, left = score_models.write_scores, [3]

    def stop_after_three(*given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(score_models, "write_scores", stop_after_three)
        with pytest.raises(SystemExit) as stop:
            cli.main([*run, "out"])
        assert stop.value.code == 130 and len(_stored("out")) == 3
    cli.main([*run, "out"])
    assert _stored("out") == _stored("whole")


def test_removed_parameters_and_damaged_files_take_one_line(workdir, capsys):
    cli.main(["score", "out", "parameter_norm"])
    base, oracle = (next(workdir.glob(f"pretrain-{name}-*")) for name in ("pretrain", "oracle"))
    written = _stored(workdir)
    shutil.rmtree(base / "params")
    (base / "scores.json").unlink()
    path = oracle / "scores.json"
    path.write_text(path.read_text().replace('"l2": ', '"l2": 1'))
    other = next(workdir.glob("unlearn-*/scores.json"))
    fingerprint = json.loads(other.read_text())["fingerprint"]
    other.write_text(json.dumps({"fingerprint": fingerprint, "scores": {"parameter_norm": 5}}))
    capsys.readouterr()
    cli.main(["score", "out", "parameter_norm"])
    out, err = capsys.readouterr()
    assert f"not scored, their parameters were removed: {base.name}" in err.splitlines()
    assert f"{path} is damaged" in err and "computed for 2 models, 5 had all, 1 have no" in out
    assert f"{other} is not of artifact {fingerprint}, or damaged: delete it" in err
    assert _stored(workdir)[oracle.name] == written[oracle.name]


def test_mistakes_take_one_line(workdir, capsys):
    line = _refused(capsys, "score", "out", "nothing")
    assert line.startswith("undo-jax: there is no score 'nothing': choose from cross_entropy, ")
    assert "which scores? choose from cross_entropy" in _refused(capsys, "score", "out")
    assert "one is given twice" in _refused(capsys, "score", "out", "repetition", "repetition")
    line = _refused(capsys, "score", "elsewhere", "repetition")
    assert (
        line.startswith("undo-jax: there is no workdir elsewhere")
        and not Path("elsewhere").exists()
    )
    Path("empty").mkdir()
    assert "empty holds no run" in _refused(capsys, "score", "empty", "repetition")
    words = ["run", "toy.py", "--workdir", "out", "--scores", "nothing"]
    assert "there is no score 'nothing'" in _refused(capsys, *words)
    Path("toy.py").rename("moved.py")
    line = _refused(capsys, "score", "out", "parameter_norm")
    assert "does not tell which file made toy: give it as --experiment FILE" in line
    line = _refused(capsys, "score", "out", "parameter_norm", "--experiment", "moved.py")
    assert "holds no finished model of moved.py" in line  # of seed 0, which was not run
    Path("moved.py").write_text(EXPERIMENT.replace('name="toy"', 'name="toy", seeds=(3,)'))
    cli.main(["score", "out", "parameter_norm", "--experiment", "moved.py"])
    assert len(_stored(workdir)) == MODELS
    broken = EXPERIMENT.replace("return {", "raise KeyError('x')\n    return {")
    broken = broken.replace('name="toy"', 'name="toy", seeds=(3,), scores=(layers_of,)')
    Path("toy.py").write_text(broken)
    line = _refused(capsys, "score", "out", "layers_of")
    assert "score layers_of raised KeyError: 'x' (" in line and "line 28)" in line


def test_models_of_a_run_that_was_stopped_are_scored(capsys, monkeypatch):
    """By its command, which is recorded as it begins; with its flags."""

    def stop(*given):
        raise KeyboardInterrupt

    run = ["run", "toy.py", "--seeds", "3", "--workdir", "out"]
    with monkeypatch.context() as patch:
        patch.setattr("undo_jax.recipes.perturb.Perturb.compute", stop)
        with pytest.raises(SystemExit, match="130"):
            cli.main(run)
    cli.main(["score", "out", "parameter_norm"])
    assert "computed for 3 models, 0 had all" in capsys.readouterr().out
    content = json.loads(Path("out/experiment-toy.json").read_text())
    assert content["begun"] == f"undo-jax {' '.join(run)}" and content["runs"] == []
    cli.main(run)
    content = json.loads(Path("out/experiment-toy.json").read_text())
    assert "begun" not in content and len(content["runs"]) == 1


def test_a_damaged_model_is_told(workdir, capsys):
    path = next(workdir.glob("unlearn-*/summary.json"))
    path.write_text("{")
    cli.main(["score", "out", "parameter_norm"])
    out, err = capsys.readouterr()
    assert "computed for 7 models, 0 had all" in out
    (line,) = [line for line in err.splitlines() if f"{path} is damaged" in line]
    assert line.endswith(f": {path.parent.name} is not scored, a run makes it again")
    for path in workdir.glob("*/summary.json"):
        if not path.parent.name.startswith("noise-"):  # which has no scores
            path.unlink()
    assert "holds no finished model of its" in _refused(capsys, "score", "out", "parameter_norm")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"a": 1}, "experiment-toy.json is not as a run writes it (its runs): run the"),
        ([5], "experiment-toy.json is not as a run writes it (its runs): run the"),
        ([{"command": "undo-jax run 'x"}], "made toy: give it as --experiment FILE"),
        ([{"command": None}], "made toy: give it as --experiment FILE"),
    ],
)
def test_damaged_commands_take_one_line(runs, said, workdir, capsys):
    path = workdir / "experiment-toy.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps({**content, "runs": runs}))
    assert said in _refused(capsys, "score", "out", "parameter_norm")


def test_the_report_shows_them(workdir, capsys):
    cli.main(["report", "out"])
    text = (workdir / "report-toy" / "summary.md").read_text()
    assert "## Scores" not in text and not (workdir / "report-toy" / "scores.csv").exists()
    cli.main(["score", "out", "parameter_norm", "cross_entropy"])
    cli.main(["report", "out"])
    text = (workdir / "report-toy" / "summary.md").read_text()
    header, _, *rows = text.split("## Scores\n\n")[1].split("\n\n")[0].splitlines()
    labels = "parameter_norm l2 | parameter_norm rms | cross_entropy retain | cross_entropy forget"
    assert header == f"| model | {labels} |"
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "base", "unlearned", "student", "oracle"
    ]  # fmt: skip
    stored = _stored(workdir)
    base = next(scores for name, scores in stored.items() if name.startswith("pretrain-pretrain"))
    assert rows[0].split(" | ")[1].startswith(f"{base['parameter_norm']['l2']:.2f}")
    lines = (workdir / "report-toy" / "scores.csv").read_text().splitlines()
    assert lines[0] == "model,seed,attack,score,value" and len(lines) == 1 + 4 * MODELS
    assert f"base,3,,cross_entropy forget,{base['cross_entropy']['forget']}" in lines
    assert sum(line.startswith("base,3,forget,") for line in lines) == 4
    path = next(workdir.glob("pretrain-pretrain-*/scores.json"))
    path.write_text(path.read_text().replace('"l2": ', '"l2": 1'))
    assert "scores.json is damaged" in _refused(capsys, "report", "out")

"""Every experiment that is shipped runs, at toy size, from its first stage to its last."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath
from toys import toy_mesh, toy_model, toy_setting, write_corpora

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.runner import experiment as experiments
from undo_jax.runner import load_experiment
from undo_jax.runner import train_group as shared
from undo_jax.runtime.atomic_files import read_json
from undo_jax.runtime.mesh import MeshShape
from undo_jax.training import loop
from undo_jax.training.population import TrialResult

ROOT = Path(undo_jax.__file__).parent.parent / "experiments"
PATHS = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
FILES = {name: path for name, path in PATHS.items() if "\nexperiment = " in path.read_text()}
DIAGRAMS = [name for name, path in FILES.items() if "= Paper(" in path.read_text()]
STAGES = ("pretrain", "unlearn", "noise", "distill", "relearn")


def _run(config, workdir, kind=None):
    """Every artifact of a run, after those that it is made from."""
    models_by_name = experiments.run(config.experiment(), workdir, kind)
    models = (m for seeds in models_by_name.values() for model in seeds for m in model.lineage)
    return list(dict.fromkeys(model.artifact for model in models))


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Small corpora and a tokenizer where the language experiments want them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(write_corpora(tmp_path_factory.mktemp("data")))
        yield


def _load(path, folder):
    """From a folder without data: what is packed here has other rows than the file says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return load_experiment.load(str(path))


def _toy(experiment):
    """The same experiment with one seed, two steps, two alphas and a very small model and data."""

    def short(part, **changes):
        training = replace(part.training, steps=2, eval_every=2, batch_size=8, accumulation=1)
        return replace(part, training=training, **changes)

    setting, model = toy_setting(experiment.setting), toy_model(experiment.setting)
    return replace(
        experiment,
        setting=setting,
        model=model,
        pretrain=short(experiment.pretrain, base=None),
        unlearn=short(experiment.unlearn),
        noise=replace(experiment.noise, alphas=experiment.noise.alphas[:2]),
        distill=short(experiment.distill),
        relearn=short(experiment.relearn, learning_rates=experiment.relearn.learning_rates[:2]),
        seeds=experiment.seeds[:1],
        mesh=toy_mesh(experiment.mesh),
    )


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in DIAGRAMS]
)
def shipped(request, tmp_path_factory):
    """An experiment at toy size, a workdir where it has run, and its artifacts."""
    experiment = _toy(_load(FILES[request.param], tmp_path_factory.mktemp("empty")))
    workdir = tmp_path_factory.mktemp("shipped")
    return experiment, workdir, _run(experiment, workdir)


@pytest.fixture
def again(shipped, tmp_path):
    """A copy of that, to be changed."""
    experiment, workdir, _ = shipped
    shutil.copytree(workdir, tmp_path / "copy")
    return experiment, tmp_path / "copy"


@pytest.fixture
def trained(monkeypatch):
    """No training: its trials keep their parameters. The calls, as numbers of trials."""
    calls = []

    def fit(population, log, saves, on_evaluation=None):
        calls.append(len(population.trials))
        return [
            TrialResult(t, t.init_params, 1, {"retain": 0.5, "forget": 0.5})
            for t in population.trials
        ]

    monkeypatch.setattr(loop, "train_together", fit)
    monkeypatch.setattr(shared, "train_together", fit)
    return calls


def _times(workdir):
    """When every file of every artifact was written."""
    files = [path for path in workdir.glob("*/**/*") if path.is_file()]
    return {path.relative_to(workdir).as_posix(): path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("name", FILES)
def test_file_defines_an_experiment(name, tmp_path):
    assert isinstance(_load(FILES[name], tmp_path).experiment(), experiments.Experiment)


def test_every_stage_writes_finished_artifacts(shipped):
    experiment, workdir, artifacts = shipped
    students = len(experiment.noise.alphas) + experiment.noise.fresh_student
    expected = {"pretrain": 2, "unlearn": 1, "noise": students, "distill": students,
              "relearn": (students + 2) * len(experiment.relearn.attacks)}  # fmt: skip
    stages = [artifact.stage for artifact in artifacts]
    assert {stage: stages.count(stage) for stage in STAGES} == expected
    for artifact in artifacts:
        written = {path.name for path in artifact.folder.iterdir()}
        assert artifact.finished and {"config.json", "params"} <= written
        if artifact.stage != "noise":
            assert (artifact.folder / "metrics.jsonl").read_text()
            assert {"retain", "forget"} <= set(artifact.summary()["eval"])
            assert artifact.summary()["steps"] in (0, 2)  # 0: recovered before the first step
    assert len({artifact.folder for artifact in artifacts}) == len(artifacts)
    assert {path.name for path in workdir.iterdir() if path.is_dir()} == {
        artifact.folder.name for artifact in artifacts
    }


def test_a_second_run_makes_nothing_anew(again, trained):
    experiment, workdir = again
    before = _times(workdir)
    _run(experiment, workdir)
    assert not trained and _times(workdir) == before


def test_other_alphas_reuse_the_models_before_them(again, trained):
    experiment, workdir = again
    before = _times(workdir)
    alphas = (*experiment.noise.alphas[:1], 0.123)
    _run(replace(experiment, noise=replace(experiment.noise, alphas=alphas)), workdir)
    attacks = len(experiment.relearn.attacks) * len(experiment.relearn.learning_rates)
    assert trained == [1, attacks]  # distill and relearn, of the new student alone
    after = _times(workdir)
    assert {name: after[name] for name in before} == before
    new_stages = {name.split("-")[0] for name in after.keys() - before.keys()}
    assert new_stages == {"noise", "distill", "relearn"}
    listed = read_json(epath.Path(workdir) / f"experiment-{experiment.name}.json")
    both = {f"UNDO α={alpha:g}" for alpha in (*experiment.noise.alphas, 0.123)}
    assert both <= {entry["model"] for entry in listed["models"]}  # neither hides the other


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_artifact_is_made_again(again, trained, stage):
    experiment, workdir = again
    folder = min(path for path in workdir.glob(f"{stage}-*"))
    (folder / "summary.json").unlink()
    (folder / "left-over").write_text("")
    before = _times(workdir)
    _run(experiment, workdir)
    assert (folder / "summary.json").exists() and not (folder / "left-over").exists()
    assert len(trained) == (stage != "noise")
    other = {name for name in before if not name.startswith(folder.name)}
    assert {name: _times(workdir)[name] for name in other} == {n: before[n] for n in other}


@pytest.mark.parametrize("mesh", [MeshShape(sweep=1, data=2, fsdp=2, tensor=2)])
def test_another_mesh_or_name_finds_the_same_artifacts(again, trained, mesh):
    experiment, workdir = again
    _run(replace(experiment, mesh=mesh, name="other"), workdir)
    assert not trained


@pytest.mark.parametrize(
    ("only", "first"),
    [("unlearn", "pretrain"), ("noise", "unlearn"), ("distill", "noise"), ("relearn", "unlearn")],
)
def test_a_stage_needs_the_stages_before_it(shipped, tmp_path, trained, only, first):
    with pytest.raises(FileNotFoundError, match=f"run stage {first} first") as error:
        _run(shipped[0], tmp_path, kind=only)
    assert "\n" not in str(error.value)
    assert not trained and not list(tmp_path.iterdir())


def test_unknown_stage(shipped, tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'nope'"):
        _run(shipped[0], tmp_path, kind="nope")


@pytest.mark.slow
def test_graphs_of_their_own_run_and_report(tmp_path, capfd):
    """Four methods side by side; then from their base, without an oracle. Twice: nothing is new."""
    short = [f"--{part}.{name} {value}" for part in ("pretrain", "distill", "relearn")
             for name, value in (("steps", 4), ("eval-every", 2))]  # fmt: skip
    small = "--setting.problems 400 --setting.questions 2 --setting.validation-rows 1".split()
    flags = [*" ".join(short).split(), *small, "--learning-rates", "0.01", "--seeds", "0"]
    arguments = ["--workdir", str(tmp_path / "out"), *flags]
    cli.main(["run", str(FILES["methods.py"]), *arguments])
    base = next((tmp_path / "out").glob("pretrain-pretrain-seed0*"))
    flags = arguments[:2] + [*" ".join(short[2:]).split(), *small, *"--learning-rates 0.01".split()]
    flags += [
        "--unlearn.steps",
        "4",
        "--unlearn.eval-every",
        "2",
        "--seeds",
        "0",
        "--base",
        str(base),
    ]
    cli.main(["run", str(FILES["from_base.py"]), *flags])
    before = _times(tmp_path / "out")
    cli.main(["run", str(FILES["methods.py"]), *arguments])
    cli.main(["run", str(FILES["from_base.py"]), *flags])
    assert {p: t for p, t in before.items() if "report-" not in p} == {
        p: t for p, t in _times(tmp_path / "out").items() if "report-" not in p
    }
    text = (tmp_path / "out" / "report-methods" / "summary.md").read_text()
    for name in ("GradDiff", "MaxEnt", "RMU", "NPO"):
        assert f"| {name} | " in text and f"| {name}, distilled | " in text
    text = (tmp_path / "out" / "report-from_base" / "summary.md").read_text()
    assert "| UNDO α=0.6 | " in text and "| oracle | " not in text

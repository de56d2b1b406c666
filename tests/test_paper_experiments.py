"""The experiments of the paper's figures run at toy size and are drawn; at full size they build."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from toys import toy, write_corpora

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.cli.experiment_flags import override
from undo_jax.report import paper
from undo_jax.runner import load_experiment
from undo_jax.runner.experiment import Experiment

ROOT = Path(undo_jax.__file__).parent.parent / "experiments" / "paper"
FILES = {
    path.stem: str(path)
    for path in sorted(ROOT.glob("*.py"))
    if "\nexperiment = " in path.read_text()
}
SETTINGS = ("arithmetic", "language")
SEEDS = "10", "11"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A folder without data."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with small corpora and tokenizers."""
    return write_corpora(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(empty, data, monkeypatch):
    """Every figure's experiment is of toy size, and the current folder has small corpora.

    What the experiments are made of is read in a folder without data: rows of the small corpora
    are shorter than they say.
    """
    monkeypatch.chdir(empty)
    load_experiment.load(FILES["methods"])
    scales = sys.modules["scales"]
    papers = {s: scales._paper(s, "small") for s in SETTINGS}
    with_models = scales.Figure.with_models
    monkeypatch.setattr(scales, "_paper", lambda setting, *_: papers[setting])
    monkeypatch.setattr(
        scales.Figure, "with_models", lambda *args, **kwargs: toy(with_models(*args, **kwargs))
    )
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(data)


def _run(name, setting, workdir, *more):
    flags = "--setting", setting, "--workdir", str(workdir), "--seeds", *SEEDS
    cli.main(["run", FILES[name], *flags, *more])


def _times(workdir):
    """When every file of every model was written."""
    folders = [path.parent for path in workdir.glob("*/summary.json")]
    files = [path for folder in folders for path in folder.glob("**/*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_figures_share_models_and_are_run_once_and_drawn(setting, small, tmp_path, capsys):
    for name in FILES:
        before = _times(tmp_path)
        _run(name, setting, tmp_path)
        after = _times(tmp_path)
        assert before.items() <= after.items(), name  # what is there is reused
        _run(name, setting, tmp_path)
        _run(name, setting, tmp_path, "--plan")
        assert _times(tmp_path) == after, name
    assert len([*tmp_path.glob("pretrain-base-*")]) == len(SEEDS)
    capsys.readouterr()
    cli.main(["figures", str(tmp_path)])
    printed = capsys.readouterr().out
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    for name in FILES:
        assert {f"{name}-small.{kind}" for kind in ("png", "svg", "csv")} <= written
        assert paper.find_figure(name).TITLE in printed


def _make_paper(folder):
    """The runs of `make paper` in a folder, by figure: their flags."""
    command = ["make", "--dry-run", "paper"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    runs = {}
    for line in result.stdout.splitlines():
        if "undo-jax run experiments/paper/" in line:
            path, *flags = line.partition("undo-jax run ")[2].split()
            assert flags[-2:] == ["--workdir", "runs/paper"]
            runs.setdefault(Path(path).stem, []).append(" ".join(flags[:-2]))
    return runs


def test_make_paper_runs_every_figure():
    both = [f"--setting {setting}" for setting in SETTINGS]
    runs = _make_paper(ROOT.parent.parent)
    assert {*runs} == {*FILES} == {*paper.names()}
    assert runs.pop("size") == ["--width 48", "--width 96", "--width 216"]
    assert list(runs.values()) == [both] * len(runs)
    order = ["oracle_matching", "methods", "alpha", "beyond", "baselines", "pareto"]
    assert [name for name in runs if name in order] == order


def test_make_paper_runs_a_new_figure(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT.parent.parent / name, tmp_path)
    (tmp_path / "undo_jax").mkdir()
    folder = shutil.copytree(ROOT, tmp_path / "experiments" / "paper")
    before = _make_paper(tmp_path)
    assert "new" not in before
    (folder / "new.py").write_text("# make paper 15: --setting language\nexperiment = None\n")
    assert _make_paper(tmp_path) == before | {"new": ["--setting language"]}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FILES)
def test_a_figure_builds_at_the_papers_scale_without_data(name, setting, empty, monkeypatch):
    monkeypatch.chdir(empty)
    flags = ["--scale", "paper", "--setting", setting]
    experiment = override(load_experiment.load(FILES[name]), flags).experiment()
    width = {"arithmetic": 768, "language": 320}[setting]
    variant = f"{setting}_width{width}" if name == "size" else setting
    assert isinstance(experiment, Experiment) and experiment.name == f"{name}-{variant}-paper"
    widths = {recipe.lm.width for recipe in experiment.models.values()}  # type: ignore[attr-defined]
    assert widths == {
        width,
        *([width // 2] if name == "baselines" else []),
    }  # its half-size student


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_distillation_at_the_papers_scale_fits_a_slice(empty, monkeypatch, capsys):
    monkeypatch.chdir(empty)
    flags = ["--scale", "paper", "--setting", "language", "--stage", "distill"]
    cli.main(["fit", FILES["oracle_matching"], "--topology", "v5e:4x4", *flags])
    assert "fits" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_oracle_matching_can_be_longer(scale, empty, monkeypatch):
    monkeypatch.chdir(empty)
    config = load_experiment.load(FILES["oracle_matching"])
    shorter, longer = (
        override(config, ["--scale", scale, *f]).experiment() for f in ([], ["--steps", "3"])
    )
    assert (shorter.name, longer.name) == (
        f"oracle_matching-arithmetic-{scale}", f"oracle_matching-arithmetic_steps3-{scale}"
    )  # fmt: skip
    lengths = {name: recipe.training.steps for name, recipe in longer.models.items()}
    unchanged = {name: shorter.models[name].training.steps for name in ("base", "oracle")}
    assert lengths == {name: unchanged.get(name, 3) for name in shorter.models}


def test_a_width_scales_heads_and_learning_rates(empty, monkeypatch):
    monkeypatch.chdir(empty)
    config = load_experiment.load(FILES["size"])
    narrow, wide = config.experiment(), override(config, ["--width", "96"]).experiment()
    assert (narrow.name, wide.name) == (
        "size-arithmetic_width48-small", "size-arithmetic_width96-small"
    )  # fmt: skip
    small, large = (experiment.models["base"].lm for experiment in (narrow, wide))
    for part in ("width", "heads", "kv_heads", "feed_forward"):
        assert getattr(large, part) == 2 * getattr(small, part)
    assert large.head_width == small.head_width and large.init_stddev == 96**-0.5
    for model in ("base", "unlearn-only", "α=0.8"):
        rates = [
            experiment.models[model].training.optimizer.learning_rate
            for experiment in (narrow, wide)
        ]
        assert rates[0] == 2 * rates[1], model
    assert narrow.attacks[0].learning_rates == tuple(2 * r for r in wide.attacks[0].learning_rates)
    assert (narrow.seeds, override(config, ["--width", "216"]).experiment().seeds) == (
        (200, 201, 202, 203, 204), (200, 201)
    )  # fmt: skip
    for width in ("50", "0", "-12"):
        with pytest.raises(ValueError, match=f"^width={width}: give a multiple of 12, so that the"):
            override(config, ["--width", width])

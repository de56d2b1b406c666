"""The command line: bad input is one line and exit status 2, and leaves nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest

import undo_jax
from undo_jax import cli
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import preset

ROOT = Path(undo_jax.__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
TOY = """
from dataclasses import replace
from undo_jax.data.tokenizers import Characters
from undo_jax.settings.arithmetic import Arithmetic
import importlib.util
spec = importlib.util.spec_from_file_location("quickstart", {quickstart!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
setting = replace(module.experiment.setting, problems=200, validation_rows=1, questions=2)
experiment = replace(module.experiment, name="toy", setting=setting, seeds=(0,))
"""
SHORT = (
    "--pretrain.training.steps 2 --unlearn.training.steps 2 --relearn.training.steps 2 "
    "--distill.training.steps 2 --noise.alphas 0.5 --relearn.learning-rates 0.001"
).split()


@pytest.fixture(autouse=True)
def in_process(monkeypatch, tmp_path):
    """The tests' devices are ready; the current folder is empty."""
    monkeypatch.setattr(cli.experiment, "prepare_devices", lambda: None)
    monkeypatch.chdir(tmp_path)


def _toy(extra=""):
    path = Path("toy.py")
    path.write_text(TOY.format(quickstart=QUICKSTART) + extra)
    return str(path)


def _refused(capsys, *arguments):
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith("undo-jax: ") and said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--noise.alphas 0.5 1.5", "alpha=1.5 is outside [0, 1]"),
        ("--noise.alpha 0.5", "--noise.alpha"),
        ("--distill.training.steps many", "many"),
        ("--distill.training.steps 0", "steps=0"),
        ("--stage distil", "unknown stage 'distil'"),
        ("--stage unlearn", "run stage pretrain first"),
        ("--pretrain.base nowhere", "no checkpoint at"),
        ("--mesh.sweep 3", "does not fit 8 devices"),
        ("--mesh.sweep 1 --mesh.data 8 --distill.training.batch-size 12", "batch of 12 rows"),
        ("--model.vocabulary 8", "model.vocabulary=8"),
        ("--model.document-start 5", "model.document_start=5"),
        ("--relearn.attacks everything", "everything"),
        ("--seeds", "seeds"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, flags, said):
    assert said in _refused(capsys, "run", QUICKSTART, *flags.split())
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "which experiment?"),
        (("run", "missing.py"), "no experiment file missing.py"),
        (("report", "nowhere"), "nowhere holds no finished run"),
        (("report", "nowhere", "--seeds"), "--seeds"),
        (("report",), "the folder of the run"),
        (("train",), "unknown command 'train': choose one of run, report, generate"),
    ],
)
def test_a_command_that_cannot_be_meant(capsys, arguments, said):
    assert said in _refused(capsys, *arguments)


def test_a_file_that_defines_no_experiment(capsys):
    Path("empty.py").write_text("")
    assert "defines no `experiment" in _refused(capsys, "run", "empty.py")


def test_a_checkpoint_of_another_model(capsys, tmp_path):
    other = jax.jit(Functional(preset("tiny", width=24)).init)(jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", other)
    said = _refused(capsys, "run", QUICKSTART, "--pretrain.base", "other")
    assert "is of another model" in said and "(24, 24)" in said and "(24, 48)" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(("content", "said"), [("", "is empty"), (None, "does not exist")])
def test_a_text_file_that_is_empty_or_missing(capsys, content, said):
    if content is not None:
        Path("text.txt").write_text(content)
    file = _toy(
        "tokenizer = Characters('0123456789+-*/=')\n"
        "setting = replace(setting, text='text.txt', tokenizer=tokenizer)\n"
        "experiment = replace(experiment, setting=setting)\n"
    )
    refused = _refused(capsys, "run", file)
    assert "text.txt" in refused and said in refused
    assert not Path("runs").exists()


def test_a_run_reports_and_runs_again_at_once(capsys):
    file = _toy()
    cli.main(["run", file, "--workdir", "out", *SHORT])
    folder = Path("out/report")
    assert {"index.html", "summary.md", "relearning.png"} <= {p.name for p in folder.iterdir()}
    before = {p: p.stat().st_mtime_ns for p in Path("out").glob("*/params/*")}
    cli.main(["run", file, "--workdir", "out", *SHORT])
    assert before and before == {p: p.stat().st_mtime_ns for p in Path("out").glob("*/params/*")}
    (folder / "summary.md").unlink()
    cli.main(["report", "out"])
    assert (folder / "summary.md").exists()
    assert "UNDO α=0.5" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_it_lists_them(capsys, words):
    cli.main(words)
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)


def test_every_command_explains_itself(capsys):
    for name, command in cli.COMMANDS.items():
        try:
            cli.main([*name.split(), "--help"])
        except SystemExit as stop:
            assert not stop.code
        said = " ".join(capsys.readouterr().out.split())
        assert (command.__doc__ or "").splitlines()[0] in said


def test_help_names_every_scalars_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", QUICKSTART, "--help"])
    said = capsys.readouterr().out
    assert not stop.value.code
    for flag in ("--seeds", "--noise.alphas", "--distill.training.optimizer.learning-rate",
                 "--setting.grammar.largest-term", "--model.layers", "--mesh.fsdp"):  # fmt: skip
        assert flag in said


def test_ctrl_c_leaves_a_workdir_that_goes_on(tmp_path):
    """Interrupted while it distils: exit status 130, finished stages kept, the rest made after."""
    command = [sys.executable, "-m", "undo_jax.cli", "run", _toy(), "--workdir", "out",
               *SHORT, "--distill.no-stop-early"]  # fmt: skip
    environment = {**os.environ, "UNDO_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    long = [*command, "--distill.training.steps", "100000"]
    running = subprocess.Popen(long, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(Path("out").glob("distill-*/metrics.jsonl")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "Traceback" not in said
    assert "the same command goes on" in said
    kept = {p: p.stat().st_mtime_ns for p in Path("out").glob("*/summary.json")}
    assert {path.parent.name.split("-")[0] for path in kept} == {"pretrain", "unlearn", "noise"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert list(Path("out").glob("relearn-*/summary.json"))

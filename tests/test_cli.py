"""The command line: bad input is one line and exit status 2, and leaves nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import undo_jax
from undo_jax import cli
from undo_jax.cli.weights import expression
from undo_jax.models import hf
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import PRESETS, Gemma2, preset

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
    monkeypatch.setattr(cli.experiment, "prepare_devices", lambda *_: None)
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
        ("--relearn.attacks", "attacks is empty"),
        ("--relearn.learning-rates nan", "learning_rates=(nan,): give positive rates"),
        ("--relearn.learning-rates 0.1 0.1", "one is given twice"),
        ("--noise.alphas 0.5 0.5", "alphas=(0.5, 0.5): one is given twice"),
        ("--noise.alphas 0.1234561 0.1234562", "one is given twice"),
        ("--distill.tolerance -1", "tolerance=-1.0"),
        ("--distill.tolerance 0", "tolerance=0.0: it must be positive"),
        (f"--seeds {2**32}", "seed 4294967296: give whole numbers from 0 to 2^32 - 1"),
        ("--seeds", "seeds"),
        ("--seeds 0 0", "seeds=(0, 0): one is given twice"),
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
        (("train",), "unknown command 'train': choose one of run, report, "),
    ],
)
def test_a_command_that_cannot_be_meant(capsys, arguments, said):
    assert said in _refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "defines no `experiment"),
        ("a = 1\nb = (\n", "mine.py, line 2: '(' was never closed"),
        ("import nothere", "mine.py: No module named 'nothere'"),
    ],
)
def test_a_file_that_defines_no_experiment(capsys, text, said):
    Path("mine.py").write_text(text)
    assert said in _refused(capsys, "run", "mine.py")


def test_a_file_may_define_a_setting_of_its_own(capsys):
    file = _toy(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Arithmetic):\n"
        "    extra: int = 1\n"
        "experiment = replace(experiment, setting=Mine(**vars(setting)))\n"
    )
    assert "invalid" in _refused(capsys, "run", file, "--setting.extra", "invalid")
    assert "unknown stage" in _refused(capsys, "run", file, "--setting.extra", "2", "--stage", "x")


def test_a_model_that_diverged_is_named(capsys):
    rate = "--pretrain.training.optimizer.learning-rate"
    cli.main(["run", _toy(), "--stage", "pretrain", rate, "1e30"])
    said = " ".join(capsys.readouterr().err.split())
    assert "pretrain of base, seed 0, diverged: its scores are not finite" in said
    cli.main(["run", _toy(), "--stage", "pretrain"])
    assert "diverged" not in capsys.readouterr().err


def test_a_checkpoint_of_another_model(capsys, tmp_path):
    other = jax.jit(Functional(preset("tiny", width=24)).init)(jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", other)
    said = _refused(capsys, "run", QUICKSTART, "--pretrain.base", "other")
    assert "is of another model" in said and "(24, 24)" in said and "(24, 48)" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("rmu", "argument: 'read_layer': give it by partial(rmu, ...)"),
        ("partial(rmu, read_layer=9, train_layers=(0, 1))", "layer 9: this model has layers 0 to"),
        ("partial(rmu, read_layer=1, train_layers=(1, 1))", "layers from 0 to below read_layer=1"),
        ("'maxent'", "method='maxent' is no function"),
    ],
)
def test_a_method_that_cannot_be_is_refused_before_anything_is_trained(capsys, method, said):
    file = _toy(
        "from functools import partial\n"
        "from undo_jax.methods.rmu import rmu\n"
        f"unlearn = replace(experiment.unlearn, method={method})\n"
        "experiment = replace(experiment, unlearn=unlearn)\n"
    )
    assert said in _refused(capsys, "run", file)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("content", "said"), [("", "is empty"), (None, "no file matches")])
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


DATA = "data pack --out out --tokenizer bytes --row-length 8".split()


@pytest.fixture
def text_file():
    Path("a.jsonl").write_text('{"text": "one two three"}\n{"text": "four five six"}\n')


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--source jsonl", "give --pattern; --name"),
        ("--source jsonl --pattern none*", "no file matches none*"),
        ("--source jsonl --pattern a.jsonl --name x", "--data-dir are of tfds"),
        ("--source jsonl --pattern a.jsonl --split test", "--data-dir are of tfds"),
        ("--source jsonl --pattern a.jsonl --document file", "drop --document"),
        ("--source jsonl --pattern a.jsonl --bos-token x", "drop bos_token=x"),
        (f"--source jsonl --pattern a.jsonl --seed {10**40}", "below 2^128"),
        ("--source jsonl --pattern a.jsonl --field body", "has no field 'body'"),
        ("--source csv --pattern a.jsonl", "csv"),
        ("--source parquet --pattern a.jsonl", "cannot read a.jsonl"),
        ("--source text --pattern a.jsonl --field text", "drop --field"),
        ("--source tfds", "give --name and no --pattern"),
        ("--source tfds --name wiki40b/en --data-dir none", "no TensorFlow data set 'wiki40b/en'"),
        ("--source jsonl --pattern a.jsonl --row-length 100", "has 28 tokens and a row takes 101"),
        ("--source jsonl --pattern a.jsonl --tokenizer words", "unknown tokenizer words"),
        ("--source jsonl --pattern a.jsonl --tokenizer no.model", "no tokenizer file at no.model"),
        ("--source jsonl --pattern a.jsonl --joining loose", "loose"),
    ],
)
def test_text_that_cannot_be_packed(capsys, monkeypatch, text_file, flags, said):
    with pytest.raises(SystemExit) as stop:
        cli.main([*DATA, *flags.split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and lines[-1].startswith("undo-jax: ")
    assert said in lines[-1]
    assert not Path("out/manifest.json").exists()


def test_a_tokenizer_is_trained_and_text_packed(capsys, text_file):
    source = ["--source", "jsonl", "--pattern", "*.jsonl", "a.jsonl"]
    cli.main(["data", "train-tokenizer", *source, "--out", "b.model", "--vocab-size", "280"])
    assert "b.model: 280 pieces, BOS is 0" in capsys.readouterr().err
    assert "b.model exists" in _refused(
        capsys, "data", "train-tokenizer", *source, "--out", "b.model", "--vocab-size", "280"
    )
    assert "name it *.model" in _refused(
        capsys, "data", "train-tokenizer", *source, "--out", "b", "--vocab-size", "280"
    )
    cli.main([*DATA, *source, "--tokenizer", "b.model"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 8 from 4 documents (2 duplicates);" in said
    cli.main([*DATA, *source, "--tokenizer", "b.model"])
    assert capsys.readouterr().err.strip() == said


def _stored(folder):
    """Every tensor of a Hugging Face folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_hugging_face_weights_become_a_base_and_the_artifact_goes_back(capsys):
    """import-hf, run --pretrain.base, export-hf: the tensors are those at the start."""
    hf.save("gemma", preset("tiny"), jax.jit(Functional(preset("tiny")).init)(jax.random.key(7)))
    cli.main(["import-hf", "gemma", "base"])
    said = capsys.readouterr()
    assert said.out.startswith("model=") and said.out.count("\n") == 1
    found = eval(said.out.removeprefix("model="), {"Gemma2": Gemma2, "preset": preset})
    assert found == replace(preset("tiny"), remat=Gemma2.remat, unroll=1)
    assert "--pretrain.base base" in said.err
    cli.main(["run", _toy(), "--workdir", "out", "--stage", "pretrain", "--pretrain.base", "base",
              *SHORT])  # fmt: skip
    (artifact,) = Path("out").glob("pretrain-base-*")
    assert json.loads((artifact / "summary.json").read_text())["steps"] == 0
    cli.main(["export-hf", str(artifact), "back", "--max-shard-gb", "5e-5"])
    before, after = _stored("gemma"), _stored("back")
    assert before.keys() == after.keys() and len(list(Path("back").glob("*.safetensors"))) > 2
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes()
    cli.main(["export-hf", str(artifact), "rounded", "--dtype", "bfloat16"])
    for name, tensor in _stored("rounded").items():
        assert tensor.dtype == "bfloat16"
        np.testing.assert_array_equal(tensor, before[name].astype(tensor.dtype), err_msg=name)


@pytest.mark.parametrize("name", PRESETS)
def test_the_line_of_a_model_makes_that_model(name):
    assert expression(preset(name)) == f'preset("{name}")'
    other = preset(name, window=7, attention_softcap=None)
    line = expression(other)
    assert line.startswith("Gemma2(") and "window=7" in line and " heads=8" not in line
    assert eval(line, {"Gemma2": Gemma2}) == other


def _artifact(folder, **model):
    Path(folder).mkdir()
    (Path(folder) / "summary.json").write_text("{}")
    content = {"config": {"model": {"type": "Gemma2", **model}}}
    (Path(folder) / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("import-hf", "google/gemma-2-2b", "out"), "no config.json in google/gemma-2-2b"),
        (("import-hf", "gs://bucket/gemma", "out"), "gs://bucket/gemma is not on this machine"),
        (("import-hf", "gemma", "taken"), "taken exists: give a new folder"),
        (("import-hf", "gemma", "out"), "no model.safetensors in gemma"),
        (("export-hf", "gemma", "out"), "gemma holds no finished model"),
        (("export-hf", "new", "out"), "holds a Gemma2 speed: only a Gemma2 of this version"),
        (("export-hf", "other", "out"), "holds a Llama"),
        (("export-hf", "empty", "out"), "no checkpoint at"),
        (("export-hf", "empty", "out", "--dtype", "int8"), "int8"),
    ],
)
def test_weights_that_cannot_be_moved(capsys, arguments, said):
    for folder in ("gemma", "taken"):
        Path(folder).mkdir()
    Path("gemma/config.json").write_text('{"model_type": "gemma2"}')
    _artifact("new", speed=3)
    _artifact("other", type="Llama")
    _artifact("empty")
    assert said in _refused(capsys, *arguments)
    assert not Path("out").exists()


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
    """Interrupted while it distils: status 130; the same command goes on from the step saved."""
    command = [sys.executable, "-m", "undo_jax.cli", "run", _toy(), "--workdir", "out",
               *SHORT, "--distill.no-stop-early", "--distill.training.steps", "1000",
               "--distill.training.eval-every", "1000"]  # fmt: skip
    environment = {**os.environ, "UNDO_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        try:
            deadline = time.monotonic() + 240
            while not list(Path("out").glob("distill-*/metrics.jsonl")):
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.2)
            running.send_signal(signal.SIGINT)
            said = running.communicate(timeout=60)[1]
        finally:
            running.kill()
    assert running.returncode == 130 and "Traceback" not in said
    said = " ".join(said.split())
    saved = re.search(r"interrupted, (.*); the same command goes on", said)
    assert saved, said
    kept = {p: p.stat().st_mtime_ns for p in Path("out").glob("*/summary.json")}
    assert {path.parent.name.split("-")[0] for path in kept} == {"pretrain", "unlearn", "noise"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    if step := re.fullmatch(r"saved at step (\d+)", saved[1]):
        assert f"distill × 2: goes on from step {step[1]}\n" in done.stderr
        assert not list(Path("out").glob("progress-*"))
    else:
        assert saved[1] == "before the first step"
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert list(Path("out").glob("relearn-*/summary.json"))

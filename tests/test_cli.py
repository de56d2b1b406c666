"""The command line: bad input is one line and exit status 2, and leaves nothing half-written."""

import asyncio
import errno
import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import terminals
from safetensors.numpy import load_file

import undo_jax
from undo_jax.cli import experiment_reports
from undo_jax.cli import main as cli
from undo_jax.cli.artifact_lm import expression
from undo_jax.cli.step_source import of_stage
from undo_jax.fit.least import least_memory
from undo_jax.fit.step import compile_step
from undo_jax.models import hf
from undo_jax.models.gemma2 import PRESETS, preset
from undo_jax.runner import experiment as runner_experiment
from undo_jax.runner import load_experiment, make
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.atomic_files import report_full_disk
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.optim import Trains
from undo_jax.types import parameters

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
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def test_every_number_of_an_experiment_is_checked(capsys):
    """Arguments of functions, too."""
    for changed in (
        "unlearn=replace(experiment.unlearn, method=partial(maxent, retain_weight=float('nan')))",
        "noise=replace(experiment.noise, noise=partial(shrink_perturb, beta=float('inf')))",
    ):
        file = _toy(
            "from functools import partial\n"
            "from undo_jax.methods.maxent import maxent\n"
            "from undo_jax.noises.shrink_perturb import shrink_perturb\n"
            f"experiment = replace(experiment, {changed})\n"
        )
        said = _refused(capsys, "run", file)
        assert re.search(r"toy.py, line 14: (unlearn.method.retain_weight|noise.noise.beta)=", said)


@pytest.mark.parametrize("flag", [f"--model.vocabulary {10**11}", f"--model.layers {10**12}"])
def test_sizes_that_cannot_be_compiled_for_are_told_by_their_need(capsys, flag):
    flags = f"--topology v5e:2x2 --mesh fsdp=4 {flag}".split()
    said = _refused(capsys, "fit", QUICKSTART, *flags)
    assert "a model of" in said and "but only 15.75 GiB are available" in said


def test_what_a_model_is_said_to_hold_it_holds():
    made = jax.tree.leaves(preset("tiny").init(jax.random.key(0)))
    assert parameters(preset("tiny")) == sum(leaf.size for leaf in made)


@pytest.mark.parametrize(
    ("model", "rows", "shape", "share"),
    [
        ({"vocabulary": 8192, "width": 96}, 16, MeshShape(data=2, fsdp=2, tensor=2), 0.1),
        pytest.param({}, 4096, MeshShape(data=8), 0.01, marks=pytest.mark.slow),
    ],
)
def test_the_least_that_a_step_needs_is_less_than_it_takes(model, rows, shape, share):
    """And not far less, where the model or the batch is large."""
    experiment, mesh = load(QUICKSTART), make_mesh(shape)
    training = replace(experiment.distill.training, batch_size=rows)
    distilled = replace(experiment.distill, training=training)
    changed = replace(experiment, model=replace(experiment.model, **model), distill=distilled)
    _, work = of_stage(changed.experiment(), "distill")
    needed, step = sum(least_memory(work, mesh)), compile_step(work, mesh)
    taken = step.memory.arguments + step.memory.temporaries
    assert share * taken < needed < taken
    partly = replace(work, trains=Trains(((r"mlp/down$", (0,)),)))
    spared = 16 * (parameters(work.lm) - work.lm.width * work.lm.feed_forward)
    spared = spared * 3 / 4 / (shape.fsdp * shape.tensor)  # weights stay
    assert needed - sum(least_memory(partly, mesh)) == pytest.approx(spared)


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
        ("--pretrain.base one two", "--pretrain.base takes one value, but got one and two: give"),
        ("--name toy two three", "--name takes one value, but got toy and two: give one"),
        ("--workdir a b", "--workdir takes one value, but got a and b: give one of them; a glob"),
        ("--noise.alpha 0.5", "--noise.alpha"),
        ("--distill.training.steps many", "many"),
        ("--distill.training.steps 0", "steps=0"),
        ("--stage distil", "unknown stage 'distil'"),
        ("--stage unlearn", "run stage pretrain first"),
        ("--pretrain.base nowhere", "nothing to import at nowhere"),
        ("--mesh.sweep 3", "does not fit 8 devices"),
        ("--mesh.sweep 1 --mesh.data 8 --distill.training.batch-size 12", "batch of 12 rows"),
        ("--model.vocabulary 8", "model.vocabulary=8"),
        ("--model.document-start 5", "model.document_start=5"),
        ("--relearn.attacks everything", "everything"),
        ("--relearn.attacks", "attacks is empty"),
        ("--relearn.attacks mixed-0.5 --relearn.training.batch-size 15", "mixed-0.5 has 7.5 rows"),
        ("--relearn.learning-rates nan", "learning_rates=(nan,): give positive rates"),
        ("--relearn.learning-rates 0.1 0.1", "one is given twice"),
        ("--noise.alphas 0.5 0.5", "alphas=(0.5, 0.5): one is given twice"),
        ("--noise.alphas 0.1234561 0.1234562", "one is given twice"),
        ("--distill.tolerance -1", "tolerance=-1.0"),
        ("--distill.tolerance 0", "tolerance=0.0: it must be positive"),
        (f"--seeds {2**32}", "seed 4294967296: give whole numbers from 0 to 2^32 - 1"),
        ("--seeds", "seeds"),
        ("--seeds 0 0", "seeds=(0, 0): one is given twice"),
        (f"--pretrain.training.batch-size {10**9}", "batch_size=1000000000 rows of 48 tokens: nee"),
        (f"--relearn.training.batch-size {10**9}", "relearn.training.batch_size=1000000000 rows"),
        (f"--setting.row-length {10**10}", "rows of 10000000000 tokens: needs at least"),
        (f"--model.vocabulary {10**11}", "vocabulary=100000000000): needs at least 69.85 TiB of"),
        (f"--model.layers {10**12}", "a model of 23,232,000,000,001,200 parameters (layers=10000"),
        (f"--setting.problems {10**12}", "problems=1000000000000: needs at least 58.21 TiB"),
        (f"--setting.grammar.largest-term {10**8}", "grammar.largest_term=100000000: needs at"),
        (f"--setting.grammar.largest-term {10**20}", f"largest_term={10**20}: give a number of at"),
        (f"--setting.grammar.largest-factor {10**8}", "grammar.largest_factor=100000000: needs"),
        (f"--setting.validation-rows {10**12}", "validation_rows=1000000000000 of row_length=48"),
        (f"--pretrain.training.steps {10**20}", f"steps={10**20}: they are counted in 32 bits"),
        (f"--pretrain.training.steps {2**31}", "steps=2147483648: they are counted in 32 bits"),
        (
            f"--pretrain.training.steps {2**30} --pretrain.training.batch-size {2**13}",
            "steps=1073741824 of batch_size=8192 rows: a stream has 4398046511104 rows",
        ),
        (f"--unlearn.training.optimizer.warmup {2**31}", "warmup=2147483648: steps are counted"),
        ("--setting.data-seed -1", "data_seed=-1: it must be at least 0"),
        (
            "--pretrain.training.optimizer.learning-rate inf",
            "pretrain.training.optimizer.learning_rate=inf: give a finite number",
        ),
        (
            "--distill.training.optimizer.weight-decay 1e39",
            "distill.training.optimizer.weight_decay=1e+39: give a finite",
        ),
        (
            "--relearn.training.optimizer.epsilon 1e-46",
            "relearn.training.optimizer.epsilon=1e-46: in fp32 that is 0",
        ),
        ("--relearn.learning-rates 0.1 inf", "relearn.learning_rates=inf: give a finite"),
        ("--noise.alphas 0.5 1e-50", "noise.alphas=1e-50: in fp32 that is 0"),
        ("--model.final-softcap inf", "final_softcap=inf: it must be a number below"),
        ("--model.rope-theta inf", "rope_theta=inf: it must be a number below"),
        ("--saving.minutes inf", "saving.minutes=inf: give a finite"),
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
        (("generate", "a-1", "a-2", "--prompt", "x"), "a-2 follows a-1, where one value is taken"),
        (("list", "runs", "more"), "more follows runs, where one value is taken: did a glob match"),
        (("report", "nowhere"), "nowhere holds no finished run"),
        (("report", "nowhere", "--seeds"), "--seeds"),
        (("report",), "report needs WORKDIR (the folder of their runs; may be gs://)"),
        (("compare",), "compare needs A (a model or an experiment) and B (another one)"),
        (("evaluate", "x"), "evaluate needs --tasks [STR ...] (names of tasks, "),
        (("train",), "unknown command 'train': choose one of init, run, report, "),
    ],
)
def test_a_command_that_cannot_be_meant(capsys, arguments, said):
    assert said in _refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "defines no `experiment"),
        ("a = 1\nb = (\n", "mine.py, line 2: '(' was never closed"),
        ("import nothere", "mine.py, line 1: No module named 'nothere'"),
        ("a = 1\na()", "mine.py, line 2: TypeError: 'int' object is not callable"),
        ("\nb", "mine.py, line 2: NameError: name 'b' is not defined"),
        ("{}['a']", "mine.py, line 1: KeyError: 'a'"),
        ("import os\nos.b", "mine.py, line 2: AttributeError: module 'os' has no attribute 'b'"),
        ("1 / 0", "mine.py, line 1: ZeroDivisionError: division by zero"),
        ("assert 0", "mine.py, line 1: AssertionError"),
        ("def f():\n    f()\nf()", "mine.py, line 2: RecursionError: maximum recursion depth"),
        ("import sys\nsys.exit(0)", "mine.py, line 2: SystemExit: 0"),
        ("import sys\nsys.exit()", "mine.py, line 2: SystemExit"),
        ("raise SystemExit('all done')", "mine.py, line 1: SystemExit: all done"),
        ("raise Exception('two\\nlines')", "mine.py, line 1: Exception: two lines"),
        ("import json\njson.loads('')", "mine.py, line 2: Expecting value: line 1 column 1"),
        ("exec('a = (')", "mine.py, line 1: '(' was never closed"),
        ("a = 1\nb = '\0'\n", "mine.py, line 2: source code"),
        (b"a = 1\nb = '\xff'\n", "mine.py, line 2: "),
        ("# coding: nothing", "mine.py, line 1: unknown encoding"),
        (b"\xef\xbb\xbf# coding: latin-1", "mine.py, line 1: encoding problem"),
        (b"\xff\xfea\0", "mine.py, line 1: "),
        ("import helper", "helper.py, line 2: ZeroDivisionError: division by zero"),
        (
            "from undo_jax.training.train_step import Training\n\nTraining(0, 1, None, 1)",
            "mine.py, line 3: steps=0: it must be at least 1",
        ),
        ("def __getattr__(name):\n    return {}[name]", "mine.py, line 2: KeyError: 'experiment'"),
    ],
)
def test_a_file_that_defines_no_experiment(capsys, monkeypatch, text, said):
    Path("mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("helper.py").write_text("def f():\n    1 / 0\nf()\n")
    monkeypatch.syspath_prepend(".")
    assert said in _refused(capsys, "run", "mine.py")


@pytest.mark.parametrize("own", ["open('gemma-2-2b')", "1 / 0", "Training(0, 1, None, 1)"])
def test_a_mistake_in_flags_is_told_though_the_file_has_no_experiment_without_them(capsys, own):
    """E.g. experiments/wmdp.py where its base is not there, and --base names another."""
    lines = (
        "from dataclasses import dataclass",
        "from undo_jax.runtime.mesh import MeshShape",
        "from undo_jax.training.train_step import Training",
        "@dataclass(frozen=True)",
        "class Mine:",
        "    base: str = 'gemma-2-2b'",
        "    name: str = 'mine'",
        "    mesh: MeshShape = MeshShape()",
        "    def experiment(self):",
        "        if self.base == 'gemma-2-2b':",
        f"            {own}",
        "        raise ValueError(f'first_layer=10 of {self.base}')",
        "experiment = Mine()",
    )
    Path("mine.py").write_text("\n".join(lines))
    said = _refused(capsys, "run", "mine.py", "--base", "small", "--plan")
    assert "mine.py, line 12: first_layer=10 of small" in said


def test_what_is_no_file_defines_no_experiment(capsys):
    Path("folder.py").mkdir()
    Path("words.txt").write_text("a")
    assert "no experiment file folder.py" in _refused(capsys, "run", "folder.py")
    assert "words.txt is not a Python file" in _refused(capsys, "run", "words.txt")


def test_the_place_of_an_error_can_be_seen_whole(monkeypatch):
    Path("mine.py").write_text("1 / 0")
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError) as error:
        cli.main(["run", "mine.py"])
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_what_a_device_has_no_memory_for_is_told_in_one_line(capsys, monkeypatch):
    def train(*_):
        jax.numpy.zeros(2**50, "int8").block_until_ready()

    monkeypatch.setattr(make, "train_group", train)
    monkeypatch.setattr(load_experiment, "_is_users", lambda file: False)  # this file is none
    said = _refused(capsys, "run", str(QUICKSTART))
    assert "1125899906842624 bytes" in said
    assert "undo-jax fit" in said and "accumulation" in said


@pytest.mark.parametrize("command", ["run", "bench", "fit --topology v5e:2x2"])
def test_an_error_in_a_method_of_ones_own_is_told_by_its_line(capsys, command):
    file = _toy(
        "def method(lm, params, refs, batch, key):\n"
        "    return batch['nothing'], {}\n"
        "experiment = replace(experiment, unlearn=replace(experiment.unlearn, method=method))\n"
    )
    line = 1 + Path(file).read_text().splitlines().index("    return batch['nothing'], {}")
    name, *flags = command.split()
    if name != "run":
        flags += ["--stage", "unlearn", "--mesh", "data=-1"]
    assert f"toy.py, line {line}: KeyError: 'nothing'" in _refused(capsys, name, file, *flags)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seeds 1.5", "--seeds 1.5: give whole numbers"),
        ("--noise.alphas a b", "--noise.alphas a b: give numbers"),
        ("--pretrain.training.steps x", "--pretrain.training.steps x: give a whole number"),
        ("--distill.tolerance x", "--distill.tolerance x: give a number"),
    ],
)
def test_what_does_not_parse_is_told_without_types(capsys, flags, said):
    assert _refused(capsys, "run", str(QUICKSTART), *flags.split()) == f"undo-jax: {said}\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--relearn.learning-rate 3",
            "options: --relearn.learning-rate, 3; perhaps you meant: --relearn.learning-rates, "
            "--relearn.training.optimizer.learning-rate\n",
        ),
        (
            "--seds 1 --unlearn.trainng.steps 2",  # told in any order
            "; arguments similar to --unlearn.trainng.steps: --unlearn.training.steps, --",
        ),
    ],
)
def test_a_flag_that_is_not_known_names_those_like_it(capsys, flags, said):
    told = _refused(capsys, "run", str(QUICKSTART), *flags.split())
    assert told.startswith("undo-jax: Unrecognized options: --") and said in told
    assert "FLOAT" not in told and "INT" not in told and "(default" not in told


def test_a_finished_graph_says_why_it_lacks_the_flags_of_an_experiment(capsys):
    file = _toy("experiment = experiment.experiment()\n")
    said = _refused(capsys, "run", file, "--noise.alphas", "0.6")
    assert said.startswith("undo-jax: Unrecognized options: --noise.alphas, 0.6")
    assert said.endswith(
        ": the file's `experiment` is an Experiment, a finished graph, in which only name, seeds, "
        "together, mesh, saving have flags; change other values in the file, by `replace`\n"
    )
    assert "finished graph" not in _refused(capsys, "run", file, "--seeds", "x")
    assert "finished graph" not in _refused(capsys, "run", _toy(), "--noise.alpha", "0.6")


@pytest.mark.parametrize("command", ["run", "bench", "fit --topology v5e:2x2"])
def test_a_mistake_in_a_flag_is_not_blamed_on_a_line_of_the_file(capsys, command):
    file = _toy(
        "from dataclasses import dataclass\n"
        "own = experiment\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    size: int = 1\n"
        "    def experiment(self):\n"
        "        if self.size != 1:\n"
        "            raise ValueError(f'size={self.size}: give 1')\n"
        "        return own.experiment()\n"
        "experiment = Config()\n"
    )
    name, *flags = command.split()
    assert _refused(capsys, name, file, *flags, "--size", "2") == "undo-jax: size=2: give 1\n"
    wrong = Path(file)
    wrong.write_text(wrong.read_text().replace("size: int = 1", "size: int = 3"))
    assert "line 1" in _refused(capsys, name, file, *flags, "--size", "2")


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


RATE = "--{}.training.optimizer.learning-rate"
QUICK = [*SHORT, "--pretrain.training.steps", "10"]


@pytest.mark.slow
def test_a_pretraining_that_diverged_ends_the_run(capsys):
    """The same command says so at once; another learning rate does not."""
    command = ["run", _toy(), "--workdir", "out", *QUICK]
    rate = RATE.format("pretrain")
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, rate, "1e30"])
    last = capsys.readouterr().err.splitlines()[-1]
    who = "pretrain of base, seed 0 and pretrain of oracle, seed 0, diverged"
    assert stop.value.code == 2 and last.startswith(f"undo-jax: {who}: its scores are not finite")
    assert "lower its learning rate" in last
    made = sorted(path for path in Path("out").glob("*-*") if path.is_dir())
    assert [path.name.split("-seed")[0] for path in made] == ["pretrain-base", "pretrain-oracle"]
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert f"undo-jax: {_refused(capsys, *command, rate, '1e30')[10:]}".strip() == last
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    for stage in ("pretrain", "unlearn"):  # which ends no run
        cli.main([*command, "--stage", stage, RATE.format("unlearn"), "1e30"])
    said = " ".join(capsys.readouterr().err.split())
    assert "unlearn of unlearn-only, seed 0, diverged: its scores are not finite" in said
    assert "pretrain of base, seed 0, diverged" not in said


@pytest.mark.slow
def test_a_pretraining_without_effect_is_said(capsys):
    flags = ["--workdir", "out", *QUICK, "--stage", "pretrain"]
    for _ in range(2):
        cli.main(["run", _toy(), *flags, RATE.format("pretrain"), "1e6"])
        said = " ".join(capsys.readouterr().err.split())
        for model in ("base", "oracle"):
            assert f"pretrain of {model}, seed 0, has learned nothing: its loss ends at" in said
        assert "a guess among 16 tokens has 2.77; change its learning rate" in said


def test_a_checkpoint_of_another_model(capsys, tmp_path):
    other = jax.jit(preset("tiny", width=24).init)(jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", other)
    said = _refused(capsys, "run", QUICKSTART, "--pretrain.base", "other")
    assert "is of another model" in said and "(24, 24)" in said and "(24, 48)" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("rmu", "argument: 'read_layer': give it by partial(rmu, ...)"),
        ("partial(rmu, read_layer=9)", "layer 9: this model has layers 0 to"),
        ("'maxent'", "method='maxent' is no function"),
        ("maxent, trains=Trains(((r'mlp/dwon$', None),))", "trains: 'mlp/dwon$' finds none of"),
        ("maxent, trains=Trains(((r'down', (9,)),))", "layers/mlp/down has layers 0 to 1, not 9"),
    ],
)
def test_a_method_that_cannot_be_is_refused_before_anything_is_trained(capsys, method, said):
    file = _toy(
        "from functools import partial\n"
        "from undo_jax.methods.maxent import maxent\n"
        "from undo_jax.methods.rmu import rmu\n"
        "from undo_jax.training.optim import Trains\n"
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


def test_a_run_reports_and_runs_again_at_once(capsys, monkeypatch):
    """A terminal has a bar; elsewhere each stage has a line at its start and at its end."""
    file = _toy()
    with terminals.told(os.openpty, monkeypatch) as said:
        cli.main(["run", file, "--workdir", "out", "--stage", "pretrain", *SHORT])
    shown = "\n".join(terminals.lines("".join(said)))
    full = rf"^pretrain × 2  {terminals.BAR} 2/2 loss \d\.\d{{4}} .*0:\d\d:\d\d *$"
    assert re.search(full, shown, re.M), shown
    with terminals.told(os.pipe, monkeypatch) as said:
        cli.main(["run", file, "--workdir", "out", *SHORT])
    unlearning, _, distilling, distilled, *_ = "".join(said).splitlines()
    assert unlearning == "unlearn × 1 (unlearn-only): starts, 2 steps"
    assert distilling == "distill × 2 (UNDO α=0.5, Unlearn-and-Distill): starts, 2 steps"
    assert "Unlearn-and-Distill): ends, all recovered at step 0, after 0:" in distilled
    assert len("".join(said).splitlines()) == 7  # the last one says where the report is
    folder = Path("out/report-toy")
    assert {"index.html", "summary.md", "relearning.png"} <= {p.name for p in folder.iterdir()}
    before = {p: p.stat().st_mtime_ns for p in Path("out").glob("*/params/*")}
    cli.main(["run", file, "--workdir", "out", *SHORT])
    assert before and before == {p: p.stat().st_mtime_ns for p in Path("out").glob("*/params/*")}
    (folder / "summary.md").unlink()
    cli.main(["report", "out"])
    assert (folder / "summary.md").exists()
    told = capsys.readouterr()
    assert "UNDO α=0.5" in told.out and "UNDO α=0.5" not in told.err


@pytest.mark.slow
def test_a_report_is_made_though_nobody_reads_what_is_printed():
    ours = [sys.executable, "-m", "undo_jax"]  # each is over before the next one writes
    made = [*ours, "run", _toy(), "--workdir", "out", *SHORT]
    told = subprocess.run(made, stdout=subprocess.PIPE, text=True, check=True).stdout
    folder, command = Path("out/report-toy"), [*ours, "report", "out"]
    for unread, other in (("stderr", told), ("stdout", "report: out/report-toy/index.html\n")):
        (folder / "summary.md").unlink()
        status, said = _unread(command, unread)
        assert status == 0 and said.splitlines()[-1] == other.splitlines()[-1]
        assert (folder / "summary.md").exists()


@pytest.mark.parametrize(
    "words",
    ["toy.py --seeds 7 8", "--seeds 7 8 toy.py --workdir out", "--sinks tensorboard toy.py "
     "--seeds 7 8", "--distill.no-stop-early --seeds=7 toy.py --seeds 8 --workdir=out"],
)  # fmt: skip
def test_the_experiment_may_stand_behind_flags(monkeypatch, words):
    """And what was typed is what the report says."""
    asked = []
    monkeypatch.setattr(runner_experiment, "run", lambda *given: asked.append(given))
    monkeypatch.setattr(experiment_reports, "write_report", lambda *_: "")
    _toy()
    cli.main(["run", *words.split()])
    (made, workdir, *_, command) = asked[0]
    assert made.seeds[-1] == 8 and workdir == ("out" if "out" in words else "runs/toy")
    assert command == f"undo-jax run {words}"


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
        (f"--source jsonl --pattern a.jsonl --row-length {10**20}", "row_length=1000"),
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
    hf.save("gemma", preset("tiny"), jax.jit(preset("tiny").init)(jax.random.key(7)))
    cli.main(["import-hf", "gemma", "base"])
    said = capsys.readouterr()
    assert said.out.startswith("model=") and said.out.count("\n") == 1
    found = eval(said.out.removeprefix("model="), {"preset": preset})
    assert found == replace(preset("tiny"), remat="dots", unroll=1)
    assert "--pretrain.base base" in said.err
    cli.main(["run", _toy(), "--workdir", "out", "--stage", "import", "--pretrain.base", "base",
              *SHORT])  # fmt: skip
    (artifact,) = Path("out").glob("import-base-*")
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
    assert line == f'preset("{name}", window=7, attention_softcap=None)'
    assert eval(line, {"preset": preset}) == other


def _artifact(folder, **model):
    Path(folder).mkdir()
    (Path(folder) / "summary.json").write_text("{}")
    content = {"config": {"model": {"type": "Transformer", **model}}}
    (Path(folder) / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("import-hf", "google/gemma-2-2b", "out"), "no config.json in google/gemma-2-2b"),
        (("import-hf", "gs://bucket/gemma", "out"), "gs://bucket/gemma is not on this machine"),
        (("import-hf", "gemma", "taken"), "taken exists: give a new folder"),
        (("import-hf", "gemma", "out"), "no model.safetensors in gemma"),
        (("export-hf", "gemma", "out"), "gemma holds no finished model"),
        (("export-hf", "new", "out"), "holds a Transformer speed: only a Transformer of this"),
        (("export-hf", "other", "out"), "holds a Llama"),
        (("export-hf", "partial", "out"), "holds a Transformer without width"),
        (("export-hf", "empty", "out"), "empty has no parameters any more: delete it"),
        (("export-hf", "empty", "out", "--dtype", "int8"), "int8"),
    ],
)
def test_weights_that_cannot_be_moved(capsys, arguments, said):
    for folder in ("gemma", "taken"):
        Path(folder).mkdir()
    Path("gemma/config.json").write_text('{"model_type": "gemma2"}')
    Path("taken/mine").touch()
    _artifact("new", speed=3)
    _artifact("other", type="Llama")
    _artifact("partial", layers=2)
    _artifact("empty", **asdict(preset("tiny")))
    assert said in _refused(capsys, *arguments)
    assert not Path("out").exists()


def test_files_that_fail_after_the_first_say_nothing(capsys, caplog, monkeypatch):
    """A disk is full for all files that a save writes; Orbax asks for the first one's error."""

    async def write():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out")

    def save():
        loop = asyncio.new_event_loop()
        files = [loop.create_task(write()) for _ in range(3)]
        try:
            with report_full_disk("out"):
                loop.run_until_complete(asyncio.wait(files))
                files[0].result()
        finally:
            loop.close()
            del files
            gc.collect()

    monkeypatch.setitem(cli.COMMANDS, "save", save)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)  # as in a new process
    assert _refused(capsys, "save").startswith("undo-jax: no space is left on the disk of out")
    assert not caplog.text


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["data"], ["data", "--help"]])
def test_without_a_command_it_lists_them(capsys, words):
    cli.main(words)
    said = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert (f"\n  {name} " in said) == ("data" not in words or name.startswith("data "))


@pytest.mark.parametrize("door", [["undo-jax"], ["python", "-m", "undo_jax"]])
def test_both_doors_say_the_version_to_whoever_reads_it(door):
    """Who closes the pipe before is no error, on stdout or on stderr."""
    name, *more = door
    command = [str(Path(sys.executable).with_name(name)), *more]
    version = re.search('^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"undo-jax {version}\n", "")
    if more:  # the script of another installation may come in by an older door
        assert _unread([*command, "--help"], "stdout") == (0, "")
        assert _unread([*command, "report", "nowhere"], "stderr") == (2, "")


def _unread(command, stream):
    """The status of a command whose output nobody reads, and what it says on the other stream."""
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        streams = {stream: writer, other: subprocess.PIPE}
        done = subprocess.run(command, **streams, text=True, check=False)
    finally:
        os.close(writer)
    return done.returncode, getattr(done, other)


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


@pytest.mark.slow
def test_ctrl_c_leaves_a_workdir_that_goes_on(tmp_path):
    """Interrupted while it distils: status 130; the same command goes on from the step saved."""
    command = [sys.executable, "-m", "undo_jax", "run", _toy(), "--workdir", "out",
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
        names = "UNDO α=0.5, Unlearn-and-Distill"
        assert f"distill × 2 ({names}): goes on from step {step[1]}\n" in done.stderr
        assert not list(Path("out").glob("progress-*"))
    else:
        assert saved[1] == "before the first step"
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert list(Path("out").glob("relearn-*/summary.json"))

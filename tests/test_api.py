"""Runs from Python: what the files of a workdir say, and what the command line prints."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from undo_jax import report
from undo_jax.api import make_run, open_model, open_run
from undo_jax.cli import main as cli
from undo_jax.data.arithmetic import Grammar
from undo_jax.data.tokenizers import Characters
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.runtime.mesh import MeshShape, make_mesh

FILE = """
from undo_jax.attacks.forget import forget
from undo_jax.attacks.mixed import mixed
from undo_jax.data.arithmetic import Grammar
from undo_jax.runner.experiment import Experiment
from undo_jax.models.gemma2 import preset
from undo_jax.training.optim import AdamW
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.train_step import Training

lm = preset("tiny", layers=1)
grammar = Grammar(largest_term=3, largest_factor=3, spaced=False, held_out=0.0)
setting = Arithmetic(
    grammar, ("equation",), 500, row_length=16, examine="train_facts", questions=None,
    validation_rows=8,
)
long = Training(40, 8, AdamW(1e-2, warmup=5), eval_every=20)
short = Training(10, 8, AdamW(3e-3, warmup=1), eval_every=5)
attack = Training(10, 8, AdamW(warmup=1), eval_every=5)
base = Pretrain(lm, long)
unlearned = Unlearn(base, short)
experiment = Experiment(
    name="toy",
    setting=setting,
    models={
        "base": base,
        "oracle": Pretrain(lm, long, stream="oracle"),
        "unlearn-only": unlearned,
        "UNDO α=0.6": Distill(unlearned, Perturb(unlearned, 0.6), long, stop_early=False),
    },
    attacks=(
        forget(attack, (3e-3, 1e-2), keep_at=(0, 5)),
        mixed(attack, (3e-3,)),
    ),
    attacked=("oracle", "unlearn-only", "UNDO α=0.6"),
    oracle="oracle",
    seeds=(0, 3),
)
"""
pytestmark = pytest.mark.slow  # all need the run
UNDO = "UNDO α=0.6"
PROMPTS = ("1+2=", "3*", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment's file, and a workdir where it has run by the command line."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "toy.py").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
        cli.main(["run", str(folder / "toy.py"), "--workdir", str(folder / "run")])
    return folder / "toy.py", folder / "run"


@pytest.fixture(scope="module")
def run(made):
    file, workdir = made
    return open_run(workdir, file)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of that, to be changed."""
    shutil.copytree(made[1], tmp_path / "copy")
    return made[0], tmp_path / "copy"


def _entry(workdir, model, seed=0):
    """What experiment-toy.json lists of a model."""
    listed = json.loads((workdir / "experiment-toy.json").read_text())["models"]
    return next(one for one in listed if (one["model"], one["seed"]) == (model, seed))


def _attack(workdir, model, name, seed=0):
    """The folder of an attack on a model."""
    folders = [workdir / one for one in _entry(workdir, model, seed)["attacks"]]
    told = {json.loads((f / "config.json").read_text())["model"]: f for f in folders}
    return next(folder for said, folder in told.items() if said.endswith(f" by {name}"))


def _said(capsys, *arguments):
    """The lines that a command prints."""
    capsys.readouterr()
    cli.main(list(map(str, arguments)))
    return capsys.readouterr().out.splitlines()


def _equal(left, right):
    left, right = (jax.tree.map(np.asarray, tree) for tree in (left, right))
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right))
    )


def test_models_by_name_and_seed_have_the_parameters_on_disk(made, run):
    assert list(run) == ["base", "oracle", "unlearn-only", UNDO]
    for name in run:
        for key, seed in ((name, 0), ((name, 0), 0), ((name, 3), 3)):
            folder = made[1] / _entry(made[1], name, seed)["artifact"]
            model = run[key]
            assert (model.name, model.seed, Path(model.folder)) == (name, seed, folder)
            if key != name:
                stored = ocp.StandardCheckpointer().restore(folder / "params")
                assert _equal(model.params, stored)
    assert not _equal(run[UNDO, 0].params, run[UNDO, 3].params)


def test_it_writes_what_the_command_line_prints(capsys, monkeypatch, made, run):
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    flags = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    flags += ["--new-tokens", "5"]
    attacked = _attack(made[1], UNDO, "forget")
    cases = {
        made[1] / _entry(made[1], "base")["artifact"]: run["base"],
        made[1] / _entry(made[1], UNDO, 3)["artifact"]: run[UNDO, 3],
        attacked: run[UNDO].attack("forget"),
        attacked / "steps" / "5": run[UNDO].attack("forget").at(5),
    }
    found = []
    for folder, model in cases.items():
        for more in ((), ("--temperature", "1.5", "--seed", "7")):
            options = {"temperature": 1.5, "seed": 7} if more else {}
            said = _said(capsys, "generate", folder, *flags, *more)
            assert model.generate(PROMPTS, new_tokens=5, **options) == said
            found.append(tuple(said))
    assert len(set(found)) > len(cases)  # they differ


def test_the_command_prints_the_same_in_a_process_of_its_own(made, run):
    """There it makes the devices ready itself, for an experiment that computes as it is read."""
    folder = run["base"].folder
    words = ["generate", folder, "--prompt", "1+2=", "--new-tokens", "5"]
    command = [sys.executable, "-m", "undo_jax", *map(str, words)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == run["base"].generate(["1+2="], 5), done.stderr


def test_scores_computed_now_are_those_on_disk(made, run):
    attacked = _attack(made[1], UNDO, "forget", 3)
    cases = {
        made[1] / _entry(made[1], "oracle", 3)["artifact"]: run["oracle", 3],
        attacked: run[UNDO, 3].attack("forget"),
        attacked / "steps" / "5": run[UNDO, 3].attack("forget").at(5),
        _attack(made[1], UNDO, "mixed"): run[UNDO].attack("mixed"),
    }
    stored = {}
    for folder, model in cases.items():
        stored[folder] = json.loads((folder / "summary.json").read_text())["eval"]
        assert model.score() == pytest.approx(stored[folder], abs=1e-4)
    assert len({scores["cross_entropy/forget"] for scores in stored.values()}) == len(cases)


def test_a_curve_is_the_strongest_attack_at_each_step(made):
    run = open_run(made[1], made[0], min_retain=0)
    for name, seed in ((UNDO, 0), ("unlearn-only", 3)):
        by_step = {}
        for attack in _entry(made[1], name, seed)["attacks"]:
            for line in (made[1] / attack / "metrics.jsonl").read_text().splitlines():
                record = json.loads(line)
                if "eval" in record:
                    scores = record["eval"]["forget"], record["eval"]["retain"]
                    by_step.setdefault(record["step"], []).append(scores)
        wanted = [(name, seed, step, *max(found)) for step, found in sorted(by_step.items())]
        assert run[name, seed].curve() == wanted
        assert [step for _, _, step, *_ in wanted] == [0, 5, 10]
    keys = [(point.model, point.seed) for point in run.curves()]
    attacked = ("oracle", "unlearn-only", UNDO)
    assert list(dict.fromkeys(keys)) == [(name, seed) for name in attacked for seed in (0, 3)]


def test_rows_are_those_of_the_report(made, run):
    """Its summary has means over seeds, with two decimals."""
    written = report.write(made[1], "toy").files["summary.md"].read_text()
    every = written.partition("## Every model")[2].partition("##")[0]
    table = re.findall(r"^\| (\S.*?) \|(.*)\|$", every, re.M)
    told = {name: [cell.split(" [")[0].strip() for cell in row.split("|")] for name, row in table}
    header = told["model"]
    for name in run:
        rows = [row for row in run.results() if row.model == name]
        assert [row.seed for row in rows] == [0, 3] and rows[0]._fields[:2] == ("model", "seed")
        wanted = {"retain before": "retain", "forget before": "forget"}
        for column, field in wanted.items():
            mean = np.mean([getattr(row, field) for row in rows])
            assert told[name][header.index(column)] == f"{mean:.2f}"
        if name == "base":
            assert all(math.isnan(row.worst) and math.isnan(row.robustness) for row in rows)
            with pytest.raises(ValueError, match="base, seed 0, has no finished attack"):
                run[name].curve()
            continue
        for step in (5, 10):
            mean = np.mean([p.forget for p in run.curves() if (p.model, p.step) == (name, step)])
            assert told[name][header.index(f"forget at step {step}")] == f"{mean:.2f}"
        for row in rows:
            assert row.worst == max(point.forget for point in run[name, row.seed].curve())
    assert {row.model: (row.role, row.alpha) for row in run.results()} == {
        "base": ("base", None),
        "oracle": ("oracle", None),
        "unlearn-only": ("unlearned", None),
        UNDO: ("distilled", 0.6),
    }


def test_other_parameters_are_scored_and_asked(run):
    """All zero: every token is equally likely, and the first one is the most likely."""
    model = run["base"]
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, "float16"), model.params)  # on the host
    scores = model.score(nothing)
    guess = math.log(model.lm.vocabulary)
    assert scores["cross_entropy/retain"] == pytest.approx(guess, abs=1e-5)
    assert scores["retain"] == scores["forget"] == 0
    assert model.generate(PROMPTS, 3, params=nothing) == ["", "", ""]  # token 0 ends a document
    assert model.score()["cross_entropy/retain"] < guess - 0.5
    with pytest.raises(ValueError, match="another model than base, seed 0"):
        model.score({"embedding": np.zeros(3)})


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(tensor=3)])
def test_meshes_stay_inside(made, run, shape):
    """Also one that does not fit, and beside a mesh of the caller's own."""
    split = open_run(made[1], replace(load(str(made[0])), mesh=shape))[UNDO]
    table = split.params["embedding"]
    assert len(table.sharding.device_set) == 8
    assert table.is_fully_replicated == (shape.tensor == 3)
    whole, tokens = jax.device_get(run[UNDO].params), np.ones((3, 5), np.int32)
    assert _equal(split.params, whole)
    for mesh in (None, make_mesh(MeshShape(sweep=2, data=4))):
        if mesh is not None:
            jax.set_mesh(mesh)
        try:
            assert _equal(run[UNDO].params, whole)  # read now
            assert split.generate(PROMPTS, 5) == run[UNDO].generate(PROMPTS, 5)
            assert split.score() == pytest.approx(run[UNDO].score(), abs=1e-4)
            now = jax.sharding.get_abstract_mesh()
            assert now == (mesh.abstract_mesh if mesh else jax.sharding.AbstractMesh((), ()))
        finally:
            if mesh is not None:
                jax.set_mesh(None)
    hidden = split.lm.hidden(split.params, tokens)  # by hand, without a mesh
    np.testing.assert_allclose(hidden, split.lm.hidden(whole, tokens), atol=1e-5)


def test_an_experiment_runs_from_python_and_makes_nothing_twice(copy):
    file, workdir = copy
    written = {f: f.stat().st_mtime_ns for f in workdir.glob("*/**/*") if f.is_file()}
    experiment = load(str(file))
    run = make_run(workdir, experiment)
    assert {f: f.stat().st_mtime_ns for f in written} == written
    folder = run["unlearn-only"].folder
    shutil.rmtree(folder)
    assert make_run(workdir, experiment)["unlearn-only"].folder == folder
    assert (folder / "summary.json").exists()


def test_any_artifact_can_be_opened(made):
    (student,) = made[1].glob("noise-*-seed3-*")
    model = open_model(student, made[0])
    assert model.seed == 3 and "α=0.6" in model.name
    assert len(model.generate(PROMPTS, 2)) == 3 and model.score().keys() >= {"retain", "forget"}


def test_what_is_not_there_is_told_in_one_line(made, run, copy, tmp_path):
    model = run[UNDO]
    cases = [
        (lambda: run["UNDO"], f"no model 'UNDO': choose from base, oracle, unlearn-only, {UNDO}"),
        (lambda: run[UNDO, 1], f"no seed 1 of {UNDO}: choose from 0, 3"),
        (lambda: model.attack("lora"), "no finished attack 'lora': it has forget, mixed"),
        (lambda: run["base"].attack("forget"), "base, seed 0, has no finished attack"),
        (lambda: model.attack("forget").at(7), r"not kept at step 7, but at 0, 5, its end: give"),
        (lambda: model.at(0), r"not kept at step 0, but at its end: give the attack keep_at=\(0,"),
        (lambda: model.generate("1+1="), "prompts='1\\+1=': give a list"),
        (lambda: model.generate([]), r"prompts=\[\]: give a list of texts, one at least"),
        (lambda: model.generate(["x"]), "character 'x' is not in the alphabet"),
        (lambda: open_run(made[1], 3), "experiment=3: give a Python file or Experiment"),
        (lambda: open_run(tmp_path, made[0]), "holds no experiment toy"),
        (lambda: open_run(made[1], replace(load(str(made[0])), name="it")), "of its own .toy."),
        (lambda: open_run(made[1], "nowhere.py"), "no experiment file nowhere.py"),
    ]
    file, workdir = copy
    (workdir / _entry(workdir, UNDO)["artifact"] / "summary.json").unlink()
    later = open_run(workdir, file)
    again = f"{UNDO}, seed 0, is not finished in .*: run the experiment again"
    cases.append((lambda: later[UNDO], again))
    for call, said in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
            call()
        assert "\n" not in str(error.value)
    assert later[UNDO, 3].params and later["base"].params


def test_a_model_of_another_shape_than_the_experiments_is_refused(copy, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(FILE.replace("layers=1", "layers=2"))
    with pytest.raises(ValueError, match="made with model.layers=1, the experiment has 2"):
        open_run(copy[1], other)["base"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: run["base"].generate(["1"], 2.5), "new_tokens=2.5: give a whole number"),
        (lambda run: run["base"].generate(["1"], "5"), "new_tokens='5': give a whole number"),
        (lambda run: run["base"].generate(["1"], True), "new_tokens=True: give a whole"),
        (lambda run: run["base"].generate(["1"], seed=1.5), "seed=1.5: give a whole number"),
        (lambda run: run["base"].generate(["1"], seed=None), "seed=None: give a whole number"),
        (lambda run: run["base"].generate(["1"], temperature="x"), "temperature='x': 0 is greedy"),
        (lambda run: run["base"].generate(["1"], temperature=None), "temperature=None: 0 is"),
        (lambda run: run["base"].generate([3]), "prompts: 3 is no text: give a list of texts"),
        (lambda run: run["base"].generate(iter("1")), "prompts=<str.*>: give a list of texts"),
        (lambda run: run["base"].generate({"1": 2}), "prompts={'1': 2}: give a list of texts"),
        (lambda run: run["base"].generate(None), "prompts=None: give a list of texts"),
        (lambda run: run[UNDO].attack(["x"]), r"no finished attack \['x'\]: it has forget, mixed"),
        (lambda run: run[UNDO].attack(None), "no finished attack None: it has forget, mixed"),
        (lambda run: run[UNDO].attack("forget").at([5]), r"not kept at step \[5\], but at 0, 5"),
        (lambda run: run["base", 0, 1], r"run\['base', 0, 1\]: give run\[name\] or run\[name, s"),
        (lambda run: run["base", "0"], "seed='0': give a whole number"),
        (lambda run: run["base", [0]], r"seed=\[0\]: give a whole number"),
        (lambda run: run["base", True], "seed=True: give a whole number"),
        (lambda run: run[()], r"no model \(\): choose from base"),
        (lambda run: run[["base"]], r"no model \['base'\]: choose from base"),
        (lambda run: open_run(run.workdir, Experiment), "give a Python file or Experiment"),
        (lambda run: open_run(run.workdir, None), "experiment=None: give a Python file or Exp"),
        (lambda run: open_run(None, run.place.experiment), "workdir=None: give the path of a f"),
        (lambda run: make_run(3, run.place.experiment), "workdir=3: give the path of a folder"),
        (lambda run: open_model(None, run.place.experiment), "folder=None: give the path of a f"),
        (lambda run: open_model("", run.place.experiment), "folder='': give the path of a folder"),
    ],
)  # fmt: skip
def test_values_of_wrong_types_are_told_in_one_line(run, call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(run)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers(run):
    model = run["base", np.int64(0)]
    numpys = model.generate(("1+",), np.int32(3), temperature=np.float32(1), seed=np.uint8(7))
    assert numpys == model.generate(["1+"], 3, temperature=1, seed=7)


def _with(experiment, **setting):
    return replace(experiment, setting=replace(experiment.setting, **setting))


def test_another_tokenizer_than_it_was_made_with_is_refused(made, copy):
    """Of as many tokens: the model's shape is right, every text would be wrong."""
    experiment = load(str(made[0]))
    alphabet = experiment.setting.get_tokenizer().alphabet
    other = _with(experiment, tokenizer=Characters(alphabet[::-1]))
    said = r"was made with tokenizer Characters \w{16}, the experiment has Characters \w{16}: give"
    folder = open_run(copy[1], experiment)["base"].folder
    for open_it in (lambda: open_model(folder, other), lambda: open_run(copy[1], other)["base"]):
        with pytest.raises(ValueError, match=f"{said}|with setting.tokenizer=None"):
            open_it()
    same = _with(experiment, tokenizer=Characters(alphabet))
    assert open_model(folder, same).generate(["1+"], 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"row_length": 24}, "setting.row_length=16, the experiment has 24"),
        (
            {"grammar": Grammar(largest_term=2, largest_factor=3, spaced=False, held_out=0.0)},
            "setting.grammar.largest_term=3, the experiment has 2",
        ),
        ({"questions": 1}, "setting.questions=None, the experiment has 1"),
        (
            {"forms": ("equation", "equation")},
            r"setting.forms=\['equation'\], the experiment has \[",
        ),
    ],
)
def test_scores_of_another_setting_than_it_was_made_with_are_refused(made, run, change, said):
    other, folder = _with(load(str(made[0])), **change), run["base"].folder
    try:
        model = open_model(folder, other)
    except ValueError as error:  # the alphabet is another one, too
        assert "was made with tokenizer" in str(error)
    else:
        assert model.generate(["1+"], 2) and model.params
        with pytest.raises(ValueError, match=f"was made with {said}.*: give the experiment file"):
            model.score()
    with pytest.raises(ValueError, match=f"was made with {said}.*: give the experiment file"):
        open_run(made[1], other)


def _edit(path, change):
    """Change a sealed JSON file."""
    content = read_json(epath.Path(path))
    change(content)
    write_json(epath.Path(path), content)


@pytest.mark.parametrize("name", ["model", "seed"])
def test_a_description_without_a_name_or_seed_is_told_in_one_line(copy, name):
    folder = copy[1] / _entry(copy[1], "base")["artifact"]
    _edit(folder / "config.json", lambda content: content.pop(name))
    with pytest.raises(ValueError, match=f"config.json states no {name}: delete .*makes it again"):
        open_model(folder, copy[0])


def test_parameters_of_a_step_whose_summary_is_damaged_are_refused(copy):
    file, workdir = copy
    attacked = open_run(workdir, file)[UNDO].attack("forget")
    folder = Path(attacked.folder) / "steps" / "5"
    summary = folder / "summary.json"
    whole = summary.read_text()
    for text, said in (
        (whole[:20], "is damaged"),
        (whole.replace('"steps": 5', '"steps": 6'), "does not match its sha256"),
        ('{"fingerprint": "of another"}', "is of another artifact"),
    ):
        assert text != whole
        summary.write_text(text)
        for open_it in (lambda: open_model(folder, file), lambda: attacked.at(5)):
            with pytest.raises(ValueError, match=f"{said}.*: delete .*, and a run makes it again"):
                open_it()
    summary.unlink()
    with pytest.raises(FileNotFoundError, match="holds no finished model"):
        open_model(folder, file)
    with pytest.raises(ValueError, match="not kept at step 5, but at 0, its end"):
        attacked.at(5)

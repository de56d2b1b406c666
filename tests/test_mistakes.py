"""Mistakes in plug-ins of every kind: one line on stderr that says what to do, and status 2."""

import sys
from pathlib import Path

import pytest
from known_logs import Workdir

from undo_jax import scores, sinks
from undo_jax.cli import commands, discovery
from undo_jax.cli import main as cli
from undo_jax.report import figures, paper
from undo_jax.runner import load_experiment

OWN = Path(__file__).parent / "own"
QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.py"
PARTS = """
from dataclasses import dataclass, replace
from typing import ClassVar
import jax, jax.numpy as jnp, numpy as np
from average import Average
from bag import Bag
from forgetful import forgetful
from letters import Letters
from undo_jax.attack import Attack
from undo_jax.attacks.forget import forget
from undo_jax.graph.recipe import ComputedRecipe, Recipe, TrainedRecipe
from undo_jax.losses import cross_entropy
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

lm, training = Bag(vocabulary=8, width=16), Training(2, 8, AdamW(0.03), eval_every=2)
base, setting, noise = Pretrain(lm, training), Letters(), forgetful
attack, scores, models = forget(training, (1.0,)), (), {}
def method(lm, params, refs, batch, key):
    return cross_entropy(lm, params, batch["retain"]), {}
def change(function):
    global setting
    setting = type("Mine", (Letters,), {function.__name__: function})()
def inherit(**members):
    made = dataclass(frozen=True)(type("Mine", (Average,), members))
    models["mine"] = made(base, Pretrain(lm, training, "oracle"))
"""
END = """
unlearned = Unlearn(base, training, method)
models = {"base": base, "unlearned": unlearned, "student": Perturb(unlearned, 0.5, noise), **models}
experiment = Experiment(
    name="mine", setting=setting, models=models, attacks=(attack,), scores=scores)
"""
EMBEDDING = "for embedding, not float32[8, 16]: return all parameters of the model"
RUNS = {  # the mistake in an experiment's file, and what is told of it
    # noises
    "noise None": (
        "def noise(lm, key, params, alpha): pass", f"noise noise gives nothing {EMBEDDING}",
    ),
    "noise shapes": (
        "def noise(lm, key, params, alpha): return jax.tree.map(lambda x: x[..., None], params)",
        f"noise noise gives float32[8, 16, 1] {EMBEDDING}",
    ),
    "noise dtypes": (
        "def noise(lm, key, params, alpha): return jax.tree.map(jnp.bfloat16, params)",
        f"noise noise gives bfloat16[8, 16] {EMBEDDING}",
    ),
    "noise more": (
        "def noise(lm, key, params, alpha): return {**params, 'more': alpha}",
        "noise noise gives float32[] for more, not nothing: return all parameters of the model",
    ),
    "noise arguments": (
        "def noise(key, params, alpha): return params",
        "noise takes (key, params, alpha): give it (lm, key, params, alpha)",
    ),
    # methods, scores, attacks
    "method arguments": (
        "def method(lm, params, batch=None, *, weight=1.0): return 0.0, {}",
        "method takes (lm, params, batch=None, *, weight=1.0): "
        "give it (lm, params, refs, batch, key)",
    ),
    "method reference": (
        "def method(lm, params, refs, batch, key): return refs['teacher'].params, {}",
        "KeyError: 'teacher' in method: refs has base, batch has retain, forget",
    ),
    "method rows": (
        "def method(lm, params, refs, batch, key): return batch['forgets'], {}",
        "KeyError: 'forgets' in method: refs has base, batch has retain, forget",
    ),
    "score arguments": (
        "def count(params): return {}\nscores = (count,)",
        "score count takes (params): give it (lm, params, setting)",
    ),
    "prepare arguments": (
        "def prepare(lm, params): pass\nattack = Attack('mine', training, prepare=prepare)",
        "prepare takes (lm, params): give it (lm, params, key)",
    ),
    "prepare None": (
        "attack = Attack('mine', training, prepare=lambda lm, params, key: None)",
        f"prepare of attack mine gives nothing {EMBEDDING}",
    ),
    # recipes
    "recipe arguments": (
        "def compute(self, parents): return parents[0]\ninherit(compute=compute)",
        "Mine.compute takes (parents): give it (mesh, key, parents, samples)",
    ),
    "recipe without compute": (
        "inherit(compute=ComputedRecipe.compute)", "Mine has no compute: define it",
    ),
    "recipe without streams": (
        "inherit(kind='x')\n@dataclass(frozen=True)\nclass Mine(TrainedRecipe):\n"
        "    kind: ClassVar[str] = 'mine'\n    role: ClassVar[str] = 'base'\n    lm: Bag = lm\n"
        "    training: Training = training\n    loss: object = method\nmodels['mine'] = Mine()",
        "Mine has no streams: define it",
    ),
    "recipe None": (
        "inherit(compute=lambda self, mesh, key, parents, samples: None)",
        f"Mine.compute gives nothing {EMBEDDING}",
    ),
    "recipe without parents": (
        "inherit(parents=())", "average of mine: parents lacks first, second: return all recipes",
    ),
    "recipe without property": (
        "inherit(parents=lambda self: ())", "Mine.parents is a method: put @property above its def",
    ),
    "recipe without kind": (
        "@dataclass(frozen=True)\nclass Mine(ComputedRecipe):\n    role: ClassVar[str] = 'base'\n"
        "    lm: Bag = lm\nmodels['mine'] = Mine()",
        "Mine has no kind: define it",
    ),
    # settings and models
    "evaluate arguments": (
        "@change\ndef evaluate(self, lm, params): return {}",
        "Mine.evaluate takes (lm, params): give it (lm, params, eval_data)",
    ),
    "evaluate number": (
        "@change\ndef evaluate(self, lm, params, eval_data): return 3.0",
        "give numbers by the metrics' names",
    ),
    "evaluate None": (
        "@change\ndef evaluate(self, lm, params, eval_data): return None",
        "Mine.evaluate gives None: give numbers by the metrics' names",
    ),
    "evaluate arrays": (
        "@change\ndef evaluate(self, lm, params, eval_data): return {'large': params['embedding']}",
        "give numbers by the metrics' names",
    ),
    "stream of arrays": (
        "@change\ndef stream(self, name, batch_size, seed): return np.zeros((8, 9), np.int32)",
        "Mine.stream('forget', ...) gives int32[1], not int32[1, 9]: each row has row_length",
    ),
    "stream None": (
        "@change\ndef stream(self, name, batch_size, seed): pass",
        "Mine.stream('forget', ...) gives a NoneType ('NoneType' object is not subscriptable)",
    ),
    "stream without fields": (
        "setting = type('Mine', (Letters,), {'batch_fields': ('weights',)})()",
        "the stream forget does not have the fields beside tokens that batch_fields of the setting",
    ),
    "stream of words": (
        "@change\ndef stream(self, name, batch_size, seed): return iter([])",
        "Mine.stream('forget', ...) gives a list_iterator (",
    ),
    "model without members": (
        "class Half:\n    vocabulary = 8\n    hidden = rules = table = init = rounded = None\n"
        "base = Pretrain(Half(), training)",
        "is no model (it has no softcap, layers, tapped, final, activations, cache_rules, "
        "empty_cache, extend, forward_flops): give e.g. preset",
    ),
}  # fmt: skip


def _refused(capsys, *words):
    """The one line of a command that is refused, without what it prints before."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("undo-jax: ")]
    assert len(lines) == 1 and told.endswith(f"{lines[0]}\n"), told
    return lines[0]


@pytest.mark.parametrize("mistake", RUNS)
def test_a_mistake_in_an_experiment_is_told_in_a_line(mistake, tmp_path, monkeypatch, capsys):
    text, said = RUNS[mistake]
    monkeypatch.syspath_prepend(OWN)
    (tmp_path / "mine.py").write_text(PARTS + text + END)
    told = _refused(capsys, "run", tmp_path / "mine.py", "--workdir", tmp_path / "out")
    assert said in told
    folders = {path.name.split("-")[0] for path in (tmp_path / "out").glob("*/summary.json")}
    assert not any(kind in folders for kind in ("noise", "average", "unlearn")), folders


def test_without_a_mistake_it_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(OWN)
    (tmp_path / "mine.py").write_text(f"{PARTS}\ninherit(){END}")
    cli.main(["run", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report-mine" / "index.html").exists()


def test_a_loss_that_is_no_number_is_told_though_the_scores_are(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(OWN)
    text = "def method(lm, params, refs, batch, key): return jnp.array(jnp.nan), {}"
    (tmp_path / "mine.py").write_text(f"{PARTS}{text}{END}")
    cli.main(["run", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "out")])
    told = [line for line in capsys.readouterr().err.splitlines() if "diverged" in line]
    assert told == [
        "unlearn of method, seed 0, diverged: its loss is nan, which trains nothing; change its "
        "loss or lower its learning rate"
    ]


FIGURE = "def caption(report): return 'All.'\n"
REPORTS = {  # the mistake in a figure's file, and what is told of it
    "import": ("import nothere", "another.py, line 1: ModuleNotFoundError: No module named"),
    "syntax": ("def plot(report:", "another.py: SyntaxError: '(' was never closed"),
    "no drawing": (FIGURE, "another.py has no function plot or draw: write it"),
    "arguments": (
        f"{FIGURE}def draw(): pass", "another.py: draw takes (): give it (report)",
    ),
    "number": (f"{FIGURE}def plot(report): return 3", "plot returns 3: return a Plot, or None"),
    "no figure": (
        f"{FIGURE}def draw(report): return 3", "draw returns 3: return a matplotlib figure",
    ),
    "raises": (
        f"{FIGURE}def plot(report):\n    return report.nothing",
        "another.py, line 3: AttributeError: 'Report' object has no attribute 'nothing'",
    ),
}  # fmt: skip


def _log(root, name):
    """An experiment of two models, of which one was attacked."""
    work = Workdir(root, name=name)
    work.add("pretrain", "base", 0, scores=(0.99, 0.98))
    work.add("pretrain", "oracle", 0, scores=(0.99, 0.01))
    work.attack("oracle", 0, curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.1)})


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Writes a file into a package of plug-ins, for the length of a test."""
    folder = tmp_path / "plugins"
    folder.mkdir()

    def write(package, name, text):
        path = [*package.__path__, str(folder)]
        monkeypatch.setattr(package, "__path__", list(dict.fromkeys(path)))
        (folder / f"{name}.py").write_text(text)

    yield write
    for module in [m for m in sys.modules if m.endswith((".another", ".different"))]:
        del sys.modules[module]


@pytest.mark.parametrize("mistake", REPORTS)
def test_a_report_is_written_without_a_wrong_figure(mistake, add, tmp_path, capsys):
    text, said = REPORTS[mistake]
    _log(tmp_path / "run", "known")
    add(figures, "another", text)
    told = _refused(capsys, "report", tmp_path / "run")
    assert told.startswith("undo-jax: figure another: ") and said in told
    files = {path.name for path in (tmp_path / "run" / "report-known").iterdir()}
    assert {"index.html", "summary.md", "relearning.svg"} <= files


PAPER = {
    "TITLE": "TITLE = 'One'\n",
    "points": "def points(studies): return [PaperPoint('a', 'b', 'c', 0, 1.0, 1.0)]\n",
    "draw": "def draw(studies, points): return Figure()\n",
    "caption": "def caption(studies): return 'All.'\n",
    "claims": "def claims(studies): return []\n",
}
PAPERS = {
    "TITLE": ("", "another.py has no constant TITLE: write it"),
    "claims": ("", "another.py has no function claims: write it"),
    "points": ("def points(): return []", "another.py: points takes (): give it (studies)"),
    "draw": ("def draw(studies, points): pass", "draw returns None: return a matplotlib figure"),
    "caption": ("def caption(studies): return {}['x']", "line 6: KeyError: 'x': correct it"),
}


@pytest.mark.parametrize("part", PAPERS)
def test_the_paper_is_drawn_without_a_wrong_figure(part, add, tmp_path, capsys):
    text, said = PAPERS[part]
    for name in ("another", "different"):
        _log(tmp_path, f"{name}-arithmetic-small")
    imports = (
        "from matplotlib.figure import Figure\nfrom undo_jax.report.studies import PaperPoint\n"
    )
    add(paper, "different", imports + "".join(PAPER.values()))
    add(paper, "another", imports + "".join({**PAPER, part: f"{text}\n"}.values()))
    told = _refused(capsys, "figures", tmp_path)
    assert told.startswith("undo-jax: another-small is not drawn: ") and said in told
    assert (tmp_path / "figures" / "different-small.svg").exists()


def test_a_figure_of_the_paper_that_nothing_draws_is_told(tmp_path, capsys):
    _log(tmp_path, "another-arithmetic-small")
    told = _refused(capsys, "figures", tmp_path)
    assert "another-small is not drawn: there is no " in told
    assert told.endswith("/report/paper/another.py, which draws it: write it")


COMMANDS = {
    "import": ("import nothere", "ModuleNotFoundError: No module named 'nothere': correct it"),
    "syntax": ("def another(:", "SyntaxError: invalid syntax"),
    "no function": ("def other(): pass", "it has no function another: write it"),
    "no docstring": ("def another() -> None: pass", "another has no docstring"),
    "no type": (
        "def another(folder) -> None:\n    'Weigh.'", "the argument folder has no type: write it",
    ),
    "order": (
        "ORDER = 'x'\ndef another() -> None:\n    'Weigh.'", "its ORDER is 'x': give a number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", COMMANDS)
def test_the_other_commands_work_beside_a_wrong_one(mistake, add, tmp_path, monkeypatch, capsys):
    text, said = COMMANDS[mistake]
    add(commands, "another", text)
    assert discovery.find_commands() == cli.COMMANDS
    (line,) = capsys.readouterr().err.splitlines()
    start = f"undo-jax: {tmp_path}/plugins/another.py is left out, it is no command: "
    assert line.startswith(start) and said in line


def test_the_other_commands_work_beside_a_wrong_folder(add, tmp_path, capsys):
    (tmp_path / "plugins" / "another").mkdir()
    add(commands, "another/__init__", "import nothere")
    assert discovery.find_commands() == cli.COMMANDS
    (line,) = capsys.readouterr().err.splitlines()
    assert "cli.commands.another is left out, it is no command: ModuleNotFoundError" in line


@pytest.mark.parametrize(
    ("place", "is_users"),
    [
        ("mine", True),
        ("env/lib/python3/site-packages", False),
        ("lib/python3/dist-packages", False),
    ],
)
def test_a_file_of_another_environment_is_a_librarys(place, is_users, tmp_path):
    file = tmp_path / place / "code.py"
    file.parent.mkdir(parents=True)
    file.touch()
    assert load_experiment._is_users(str(file)) == is_users


NAMED = {  # the mistake in the file of a score or sink, and what is told of it
    "no function": ("def other(): pass", "another.py has no function another: write it"),
    "number": ("another = 5", "another.py has no function another: write it"),
    "syntax": ("def another(:", "another.py: SyntaxError: invalid syntax"),
    "import": ("import nothere", "ModuleNotFoundError: No module named 'nothere': correct it"),
    "raises": ("1 / 0", "another.py: ZeroDivisionError: division by zero: correct it"),
    "exits": ("import sys; sys.exit(0)", "another.py, line 1: SystemExit: 0"),
}


@pytest.mark.parametrize("mistake", NAMED)
@pytest.mark.parametrize("package", [scores, sinks], ids=["scores", "sinks"])
def test_a_mistake_in_a_score_or_sink_is_told(package, mistake, add, tmp_path, capsys):
    text, said = NAMED[mistake]
    add(package, "another", text)
    words = "run", QUICKSTART, "--workdir", tmp_path / "out"
    told = _refused(capsys, *words, f"--{package.__name__.rpartition('.')[2]}", "another")
    assert told.startswith(f"undo-jax: {tmp_path}/plugins/another.py") and said in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("methods", "TypeError('x')"),
        ("sinks", "RuntimeError('x')"),
        ("scores", "SystemExit('x')"),
        ("methods", "ValueError('give y')"),
    ],
)
def test_an_error_of_a_file_in_the_package_is_told(kind, error, tmp_path, monkeypatch, capsys):
    """By its line, if it was not raised on purpose."""
    monkeypatch.syspath_prepend(OWN)
    monkeypatch.syspath_prepend(tmp_path / kind)
    monkeypatch.setattr(load_experiment, "PACKAGE", tmp_path)
    monkeypatch.setattr(load_experiment, "_is_users", lambda file: False)
    (tmp_path / kind).mkdir()
    own = tmp_path / kind / "another.py"
    own.write_text(f"def method(lm, params, refs, batch, key):\n    raise {error}\n")
    monkeypatch.delitem(sys.modules, "another", raising=False)
    folder = tmp_path.parent / f"{tmp_path.name}-own"
    folder.mkdir()
    (folder / "mine.py").write_text(f"{PARTS}from another import method\n{END}")
    told = _refused(capsys, "run", folder / "mine.py", "--workdir", tmp_path / "out")
    where = f"{own}, line 2: {error.partition('(')[0]}: x" if "'x'" in error else "give y"
    assert told == f"undo-jax: {where}"

"""What README.md, CONTRIBUTING.md and docs/YOUR_MODEL.md show can be typed in as it is."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

import undo_jax
from undo_jax import cli
from undo_jax.attacks import Attack
from undo_jax.cli.experiment import override
from undo_jax.experiment import Experiment
from undo_jax.experiment_file import load
from undo_jax.log import Target
from undo_jax.optim import AdamW
from undo_jax.train import Training

ROOT = Path(undo_jax.__file__).parent.parent
README, CONTRIBUTING = ((ROOT / f"{name}.md").read_text() for name in ("README", "CONTRIBUTING"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def _block(part):
    (found,) = [block for block in BLOCKS if part in block]
    return found


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_python(block):
    ast.parse(block)


def test_the_graph_is_an_experiment_whose_name_no_other_has(tmp_path):
    path = tmp_path / "my_graph.py"
    path.write_text(_block("# my_graph.py"))
    made = load(str(path)).graph()
    assert len(made.models) == 5
    shipped = [load(str(one)) for one in (ROOT / "experiments").glob("*.py")]
    assert made.name not in {one.name for one in shipped}


def test_the_sink_writes(tmp_path):
    names = {"Paper": lambda *_, **given: given["sinks"]}
    exec(_block("def losses"), names)
    (sink,) = names["experiment"]
    with sink(Target(tmp_path, (), "x", "x")) as write:
        write({}, {"step": 1, "loss": 0.5})
    assert (tmp_path / "losses.csv").read_text() == "1,0.5\n"


def test_an_attack_as_it_is_shown_is_one():
    shown = re.search(r"    def NAME\(training.*?\n\n", CONTRIBUTING, re.DOTALL)
    names = {"Attack": Attack}
    exec("if True:\n" + shown[0], names)
    attack = names["NAME"](Training(10, 8, AdamW(warmup=1), 5), (1e-3,), keep_at=(5,))
    assert (attack.name, attack.keep_at) == ("NAME", (5,)) and AdamW(warmup=1).learning_rate == 1
    paper = load(str(ROOT / "experiments" / "quickstart.py"))
    assert isinstance(replace(paper.graph(), attacks=(attack,)), Experiment)


def test_links_inside_the_repository_lead_somewhere():
    for text in (README, CONTRIBUTING):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / link).exists(), link


def test_headings_that_readme_links_to_are_there():
    titles = [line.removeprefix("## ") for line in CONTRIBUTING.splitlines()]
    anchors = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}
    assert set(re.findall(r"CONTRIBUTING\.md#([\w-]+)", README)) <= anchors


GUIDE = (ROOT / "docs" / "YOUR_MODEL.md").read_text()
COMMANDS = re.sub(r" \\\n +", " ", "\n".join(re.findall(r"```\n(.*?)```", GUIDE, re.DOTALL)))


@pytest.mark.slow
@pytest.mark.parametrize("command", re.findall(r"undo-jax (?:run|fit) (\S+\.py .*)", COMMANDS))
def test_flags_of_the_guide_are_those_of_the_experiments(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1])
    file, *words = command.split()
    own = ("--stage", "--topology", "--mesh", "--workdir")
    words = [w for w, before in zip(words, ["", *words], strict=False) if before not in own]
    flags = [w for w in words if w not in (*own, "--plan", "--all", "--distributed")]
    knobs = load(file if file == "my_model.py" else str(ROOT / file))
    assert isinstance(override(knobs, flags).graph(), Experiment)


def test_the_guides_own_experiment_needs_no_data_to_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1])
    assert set(load("my_model.py").graph().models) == {"base", "unlearn-only", "UNDO"}


def test_the_guide_names_commands_that_are_there():
    for words in re.findall(r"undo-jax ((?:data )?[a-z-]+)", COMMANDS):
        assert words in cli.COMMANDS, words

"""What README.md, CONTRIBUTING.md and the documents show is as they say, and links lead on.

Commands for a shell are in tests/test_commands.py.
"""

import ast
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from documents import ROOT, blocks

from undo_jax.graph.model_graph import build_graph
from undo_jax.logs.sink import Target
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import load
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

DOCS = ROOT / "docs"
SITE = sorted(DOCS.rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
PYTHON = {f"{page.stem}-{i}": text for page in SITE
          for i, text in enumerate(blocks(page, "python"))}  # fmt: skip


def _block(page, part):
    (found,) = [block for block in blocks(DOCS / f"{page}.md", "python") if part in block]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A reader's folder, with the shipped experiments."""
    monkeypatch.chdir(tmp_path)
    Path("experiments").symlink_to(ROOT / "experiments")
    return tmp_path


@pytest.mark.parametrize("block", PYTHON.values(), ids=PYTHON)
def test_every_block_is_python(block):
    ast.parse(block)


def test_the_graph_is_an_experiment_whose_name_no_other_has(folder):
    Path("my_graph.py").write_text(_block("YOUR_EXPERIMENT", "# my_graph.py"))
    made = load("my_graph.py").experiment()
    assert len(made.models) == 5
    shipped = [load(str(one)) for one in (ROOT / "experiments").glob("*.py")]
    assert made.name not in {one.name for one in shipped}


def test_the_guides_own_experiment_needs_no_data_to_be_loaded(folder):
    Path("my_model.py").write_text(_block("YOUR_MODEL", "# my_model.py"))
    assert set(load("my_model.py").experiment().models) == {"base", "unlearn-only", "UNDO"}


def _artifacts(experiment, folder):
    """Names of the folders of all that an experiment makes."""
    made = build_graph(experiment.recipes().values(), experiment.seeds, experiment.setting, folder)
    return {model.artifact.folder.name for model in made.models}


def _own_and_shipped(page, folder, *files):
    """What the experiment in the last of a page's files makes, and what the quickstart makes."""
    for name in files:
        Path(name).write_text(_block(page, f"# {name}"))
    shipped = load("experiments/quickstart.py").experiment()
    return _artifacts(load(files[-1]).experiment(), folder), _artifacts(shipped, folder)


def _kinds(artifacts):
    return {name.split("-")[0] for name in artifacts}


def test_a_method_of_ones_own_reuses_the_quickstarts_base_and_oracle(folder):
    own, shipped = _own_and_shipped("YOUR_METHOD", folder, "my_method.py")
    assert _kinds(own - shipped) == {"unlearn", "noise", "distill", "relearn"}
    assert {name for name in shipped if name.startswith("pretrain-")} <= own


def test_an_attack_of_ones_own_reuses_the_quickstarts_models(folder):
    own, shipped = _own_and_shipped("YOUR_ATTACK", folder, "my_attack.py")
    assert shipped < own and _kinds(own - shipped) == {"relearn"}
    assert all("-by-few-" in name for name in own - shipped)


def test_the_sink_writes(tmp_path):
    names = {}
    exec(_block("../CONTRIBUTING", "def loss_lines"), names)
    with names["loss_lines"](Target(tmp_path, (), "x", "x")) as write:
        write({"learning_rate": 0.1}, {"step": 1, "loss": 0.5})
    assert (tmp_path / "losses.csv").read_text() == "1,0.1,0.5\n"


def test_an_attack_as_it_is_shown_is_one():
    names = {}
    exec(_block("../CONTRIBUTING", "def few_rows"), names)
    attack = names["few_rows"](Training(10, 8, AdamW(warmup=1), 5), (1e-3,), keep_at=(5,))
    assert (attack.name, attack.keep_at) == ("few_rows", (5,))
    assert AdamW(warmup=1).learning_rate == 1
    paper = load(str(ROOT / "experiments" / "quickstart.py"))
    assert isinstance(replace(paper.experiment(), attacks=(attack,)), Experiment)


def _text(page):
    """A page without its blocks of code."""
    if page.suffix == ".ipynb":
        cells = nbformat.read(page, as_version=4).cells
        return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text())


def _anchors(page):
    """Names of a page's headings, as code hosts and the site make them."""
    titles = re.findall(r"(?m)^#+ (.*)$", _text(page))
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}


@pytest.mark.parametrize("page", [*PAGES, DOCS / "tutorial.ipynb"], ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", _text(page)):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), f"{link}#{anchor}"


def test_every_page_of_the_site_can_be_found():
    """In the site by its lists, and on a code host by links from README.md or the home page."""
    home, readme = (DOCS / "index.md").read_text(), (ROOT / "README.md").read_text()
    assert "(docs/index.md)" in readme
    for page in SITE:
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        if page.parent == DOCS and page.stem not in ("index", "contributing"):
            assert re.search(rf"(?m)^{name}$", home), name
            assert f"({name}.md)" in home or f"(docs/{name}.md)" in readme or name == "api", name


def test_the_readme_is_short():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 100
    assert len(readme.split()) <= 700

"""Each file that CONTRIBUTING.md shows or says to copy passes the contract tests of its kind.

In a copy of the checkout all of them are written; the tests find them, and no list is edited.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from documents import ROOT, blocks

GUIDE = ROOT / "CONTRIBUTING.md"
COPIED = "undo_jax", "tests", "experiments", "docs"
FILES = "CONTRIBUTING.md", "README.md", "Makefile", "pyproject.toml", "constraints.txt"
NAME = "of_the_guide"  # of what is copied
CONTRACTS = {  # by the folder of a kind
    "undo_jax/methods": "tests/test_methods_contract.py",
    "undo_jax/noises": "tests/test_noises.py",
    "undo_jax/attacks": "tests/attacks/test_attacks.py",
    "undo_jax/settings": "tests/settings/test_settings_contract.py",
    "undo_jax/scores": "tests/scores/test_scores_contract.py",
    "undo_jax/models": "tests/models/test_family_contract.py",
    "undo_jax/report/figures": "tests/report/test_report.py",
    "undo_jax/report/paper": "tests/report/test_paper_figures.py",
    "experiments/paper": "tests/test_paper_experiments.py",
    "undo_jax/recipes": "tests/test_recipes_contract.py",
    "undo_jax/cli/commands": "tests/test_commands_contract.py",
    "undo_jax/sinks": "tests/test_sinks.py",
}
SLOWER = "in_transformers", "mesh", "sharded", "finished_model"  # parts of other contract tests
# The contract tests, and then the command of the guide.
RUN = """
import sys, pytest
status = pytest.main(sys.argv[1:])
from undo_jax.cli.main import main
main(["of-the-guide", "overlap"])
sys.exit(status)
"""


def _shown():
    """The files that the guide shows, by their paths."""
    named = {re.match(r"# (\w+/\S+\.py)\n", block): block for block in blocks(GUIDE, "python")}
    return {match[1]: block for match, block in named.items() if match}


def _renamed():
    """The files that the guide says to copy, under another name, by their paths."""
    pairs = re.findall(r"[Cc]opy\s+`([\w/]+\.py)`\s+to\s+`([\w/]+)/NAME\.py`", GUIDE.read_text())
    for source, folder in pairs:
        stem = source.rpartition("/")[2].removesuffix(".py").removesuffix("_figure")
        text = (ROOT / source).read_text()
        yield f"{folder}/{NAME}.py", re.sub(rf"(?<![\w.]){stem}(?!\w)", NAME, text)


@pytest.fixture(scope="module")
def examples():
    return {**_shown(), **dict(_renamed())}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, examples):
    """A copy of the checkout with all of these files."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for path, text in examples.items():
        assert not (folder / path).exists(), path
        (folder / path).write_text(text)
    return folder


def _run(checkout, *words, tests=()):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    paths = tests or CONTRACTS.values()
    command = [sys.executable, "-c", RUN, *paths, "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "--xla" in done.stdout.splitlines()[-1]  # what the command prints
    return done.stdout


def test_the_guide_has_a_file_of_each_kind(examples):
    assert {path.rpartition("/")[0] for path in examples} == {*CONTRACTS}
    assert all(len(text.splitlines()) <= 25 for text in _shown().values())


def test_signatures_have_their_imports():
    signatures = [block for block in blocks(GUIDE, "python") if "def NAME(" in block]
    assert len(signatures) == 2
    for block in signatures:
        exec(block, {})


def test_the_contract_holds_for_each_file(checkout, examples):
    names = {path: path.rpartition("/")[2].removesuffix(".py") for path in examples}
    wanted = {*names.values(), NAME.replace("_", "-"), "Average"}
    words = f"({' or '.join(wanted)}) and not ({' or '.join(SLOWER)})"
    done = _run(checkout, "-vv", "-m", "not slow", "-k", words)
    for path in names:
        assert f"{CONTRACTS[path.rpartition('/')[0]]}::" in done, f"no test of {path} has run"


@pytest.mark.slow
def test_no_list_is_edited_for_a_new_file(checkout):
    """Runs the contract tests that have no parameters: those of each new file have run above."""
    lines = _run(checkout, "-m", "not slow", "--collect-only").splitlines()
    _run(checkout, tests=[line for line in lines if "::" in line and "[" not in line])

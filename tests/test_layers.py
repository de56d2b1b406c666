"""The order of the layers, the words that plumbing does not know, and how long files may be."""

import ast
from pathlib import Path

import pytest

import undo_jax

ROOT = Path(undo_jax.__file__).parent
ROWS = (
    "signals", "stopping", "types", "checks", "memory", "mesh", "sharding", "collectives", "ops",
    "models", "losses", "packed", "optim", "clock", "log", "digest", "durable", "sinks", "lock",
    "checkpoint", "artifacts", "progress_folders", "steps", "peers", "progress", "data", "train",
    "evals", "population", "methods", "noises", "attacks", "settings", "recipe", "graph", "fit",
    "made_with", "candidates", "teacher_cache", "trainer", "schedule", "runner", "recipes",
    "origin", "listing", "experiment", "paper", "experiment_file", "bench", "pace", "plan",
    "inventory", "cleaning", "report", "api", "demo", "cli", "__main__",
)  # fmt: skip
PLUMBING = (
    "train", "population", "mesh", "sharding", "collectives", "optim", "clock", "log", "lock",
    "checkpoint", "artifacts", "progress_folders", "steps", "progress", "signals", "stopping",
    "peers",
    "candidates", "teacher_cache", "trainer", "schedule", "runner", "sinks",
)  # fmt: skip
LIMITS = {
    "train.py": 150,
    "recipes/*.py": 110,
    "trainer.py": 210,
    "runner.py": 165,
    "methods/*.py": 60,
}
LONGEST = 300  # lines
TABLES = ("data/templates.py",)  # of data: as long as they are
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def _row(name):
    """The row of a module's path, e.g. of "stages/run.py" or "undo_jax.stages.run"."""
    return name.removeprefix("undo_jax.").removesuffix(".py").split("/")[0].split(".")[0]


def _imports(file):
    """Every name under undo_jax that a file imports, e.g. undo_jax.sharding.path_name."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "undo_jax")


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_imports_only_from_rows_above(file):
    own = _row(file)
    assert own in ROWS, f"{file} has no row: add it to ROWS where its imports allow"
    for name in _imports(file):
        row = _row(name)
        assert row in ROWS, f"{file} imports {name}: import from the module that defines it"
        assert ROWS.index(row) <= ROWS.index(own), f"{file} imports {name}, which is below it"
        assert own != "report" or row == "report", f"{file} imports {name}: logs alone"


def test_the_package_itself_imports_nothing():
    assert not list(_imports("__init__.py"))


@pytest.mark.parametrize("file", [file for file in FILES if _row(file) in PLUMBING])
def test_plumbing_does_not_know_the_method(file):
    text = (ROOT / file).read_text().lower()
    assert not [word for word in ("unlearn", "forget", "retain") if word in text]


def test_every_plumbing_file_is_checked():
    assert {_row(file) for file in FILES if _row(file) in PLUMBING} == set(PLUMBING)


@pytest.mark.parametrize("file", [file for file in FILES if file not in TABLES])
def test_a_file_is_one_room(file):
    length = len((ROOT / file).read_text().splitlines())
    assert length <= LONGEST, f"{file} has {length} lines: split it by what its parts do"


def test_private_jax_is_not_mentioned():
    private = "jax." + "_src"
    paths = [*ROOT.rglob("*.py"), *(ROOT.parent / "experiments").rglob("*.py")]
    assert not [path.name for path in paths if private in path.read_text()]


@pytest.mark.parametrize("pattern", LIMITS)
def test_files_stay_short(pattern):
    files = list(ROOT.glob(pattern))
    assert files
    for path in files:
        limit = LIMITS.get(path.relative_to(ROOT).as_posix(), LIMITS[pattern])
        length = len(path.read_text().splitlines())
        assert length <= limit, f"{path.name} has {length} lines, more than {limit}: split it"

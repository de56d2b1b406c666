"""The layers, the words that the engine does not know, and how long files may be."""

import ast
import re
from pathlib import Path

import pytest

import undo_jax

ROOT = Path(undo_jax.__file__).parent
LAYERS = {  # a file imports from its own package and from the layers above its own
    "vocabulary": ("types", "checks", "retain_bound"),
    "records": ("logs",),
    "devices, processes and files": ("runtime",),
    "reports": ("report",),
    "operations": ("ops", "sinks", "store"),
    "models": ("models",),
    "training": ("data", "losses", "training"),
    "attacks and settings": ("attack", "setting"),
    "graph": ("graph",),
    "methods": ("evals", "methods", "noises"),
    "plug-ins and tools": ("attacks", "fit", "recipes", "scores", "settings", "workdir"),
    "runs": ("runner",),
    "experiments": ("api", "paper"),
    "demo": ("demo",),
    "command line": ("cli",),
    "entry point": ("__main__",),
}
LAYER_OF = {name: number for number, names in enumerate(LAYERS.values()) for name in names}
METHOD_FREE = ("logs", "runtime", "sinks", "store", "training")  # these never mention the method
METHOD_FREE_FILES = (
    "runner/make.py", "runner/train_group.py", "runner/split_group.py", "runner/run_context.py",
    "runner/save_trained.py", "runner/teacher_cache.py", "runner/score_models.py",
    "runner/unfinished.py",
    "graph/model_graph.py", "graph/loss_trace.py", "graph/model_differences.py",
)  # fmt: skip
LIMITS = {
    "training/train_step.py": 180,
    "recipes/*.py": 150,
    "runner/train_group.py": 210,
    "runner/make.py": 165,
    "methods/*.py": 60,
}
LONGEST = 300  # lines
MOST_TO_READ = 2000  # lines
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def _package(name):
    """The package of a path or module: runner of runner/make.py and of undo_jax.runner.make."""
    return name.removeprefix("undo_jax.").removesuffix(".py").split("/")[0].split(".")[0]


def _imports(file):
    """Every name under undo_jax that a file imports, e.g. undo_jax.runtime.sharding.path_name."""
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
def test_imports_only_from_layers_above(file):
    package = _package(file)
    assert package in LAYER_OF, f"{file} has no layer: add {package} to LAYERS"
    for name in _imports(file):
        imported = _package(name)
        if imported != package:
            assert LAYER_OF[imported] < LAYER_OF[package], f"{file} imports {name}"


def test_no_two_files_import_each_other():
    names = {"undo_jax." + file.removesuffix(".py").replace("/", "."): file for file in FILES}
    imports = {
        file: {
            names[n]
            for name in _imports(file)
            for n in (name, name.rpartition(".")[0])
            if n in names
        }
        for file in FILES
    }
    files = dict(imports)
    while leaves := {file for file, wanted in files.items() if not wanted & files.keys()}:
        files = {file: wanted for file, wanted in files.items() if file not in leaves}
    assert not files, f"these import in a circle: {sorted(files)}"


def test_contributing_shows_the_layers():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    rows = [f"{name:<30}{'  '.join(packages)}" for name, packages in LAYERS.items()]
    assert "\n".join(f"    {row}" for row in rows) in text, "\n".join(rows)


def test_contributing_gives_a_short_reading_order():
    """From an experiment to its compiled step; each file is imported by one that is read before."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    paths = [ROOT.parent / path for path in re.findall(r"^\d+\. `(\S+\.py)`", text, re.MULTILINE)]
    assert paths[0].name == "quickstart.py" and paths[-1].name == "train_step.py"
    assert len(paths) <= 11
    assert sum(len(path.read_text().splitlines()) for path in paths) <= MOST_TO_READ
    for number, path in enumerate(paths[1:], start=1):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        names = [name for earlier in paths[:number] for name in _imports(earlier)]
        assert any(f"{name}.".startswith(f"{module}.") for name in names), path


def test_the_package_itself_imports_nothing():
    assert not list(_imports("__init__.py"))


@pytest.mark.parametrize(
    "file", [file for file in FILES if _package(file) in METHOD_FREE or file in METHOD_FREE_FILES]
)
def test_the_engine_does_not_know_the_method(file):
    text = (ROOT / file).read_text().lower()
    assert not [word for word in ("unlearn", "forget", "retain") if word in text]


def test_every_file_of_the_engine_is_checked():
    assert {_package(file) for file in FILES} >= {*METHOD_FREE}
    assert {*FILES} >= {*METHOD_FREE_FILES}


@pytest.mark.parametrize("file", FILES)
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

"""Names say what a value is, and a class name has one meaning."""

import ast
from collections import defaultdict
from pathlib import Path

import undo_jax

ROOT = Path(undo_jax.__file__).parent.parent
FOLDERS = ("undo_jax", "experiments", "benchmarks")
FILES = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py")]
CONTENTLESS = frozenset(
    "found made said told known own one given what how here some there asked kept wanted "
    "others".split()
)
SHORT = 2  # lines of a comprehension whose variables may have any name
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _bindings(tree):
    """(name, line) of each variable and argument that is bound outside short comprehensions."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, COMPREHENSIONS) and child.end_lineno - child.lineno < SHORT:
            continue
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id, child.lineno
        elif isinstance(child, ast.arg):
            yield child.arg, child.lineno
        yield from _bindings(child)


def test_no_name_is_without_content():
    contentless = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in FILES
        for name, line in _bindings(ast.parse(path.read_text()))
        if name.strip("_") in CONTENTLESS
    ]
    assert not contentless, "\n".join(["rename these to what they are:", *contentless])


def test_a_class_name_has_one_meaning():
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in places.items() if len(files) > 1}

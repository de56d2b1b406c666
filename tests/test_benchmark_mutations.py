"""The table of benchmarks/mutations.py names modules and tests that exist."""

import ast
from pathlib import Path

import pytest

import undo_jax

ROOT = Path(undo_jax.__file__).parent.parent


def _owners():
    """The table OWNERS, read without importing the benchmark, which needs mutmut."""
    tree = ast.parse((ROOT / "benchmarks" / "mutations.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OWNERS":
            return ast.literal_eval(node.value)
    raise AssertionError("benchmarks/mutations.py has no table OWNERS")


@pytest.mark.parametrize(("modules", "tests"), _owners().items())
def test_modules_and_their_tests_exist(modules, tests):
    assert list(ROOT.glob(modules)), modules
    for path in tests:
        assert (ROOT / path.removeprefix("slow:")).exists(), path

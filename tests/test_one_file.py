"""examples/undo_in_one_file.py imports nothing of undo_jax, and computes what the package does."""

import ast
import importlib.util
from functools import partial
from zlib import crc32

import jax
import numpy as np
import pytest
from documents import ROOT
from flax import traverse_util

from undo_jax.losses import cross_entropy, forward_kl
from undo_jax.methods.maxent import maxent
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.runner.load_experiment import load
from undo_jax.training.train_step import rows
from undo_jax.types import Frozen

PATH = ROOT / "examples" / "undo_in_one_file.py"
KEY = jax.random.fold_in(jax.random.key(0), crc32(b"pretrain/base"))

flat = partial(traverse_util.flatten_dict, sep="/")
unflat = partial(traverse_util.unflatten_dict, sep="/")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quickstart():
    return load(str(ROOT / "experiments" / "quickstart.py"))


def test_it_is_one_short_file_without_the_package():
    text = PATH.read_text()
    nodes = list(ast.walk(ast.parse(text)))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.startswith("undo_jax")]
    assert len(text.splitlines()) <= 240


@pytest.mark.parametrize(
    ("stream", "operations"),
    [("pretrain", "+-*/"), ("oracle", "+-"), ("retain", "+-"), ("forget", "*/")],
)
def test_batches_are_those_of_the_package_in_the_second_epoch_too(
    example, quickstart, stream, operations
):
    data = example.make_rows(operations)
    batches = example.batches(data, "pretrain/0")
    expected = quickstart.setting.stream(stream, 16, crc32(b"pretrain/0"))
    for step in range(len(data) // 16 + 5):
        np.testing.assert_array_equal(next(batches), expected[step])


def test_parameters_begin_as_those_of_the_package(example, quickstart):
    expected, params = flat(quickstart.model.init(KEY)), example.init(KEY)
    assert params.keys() == expected.keys()
    for name in params:
        np.testing.assert_array_equal(params[name], expected[name])


def test_noise_is_that_of_the_package(example, quickstart):
    params = example.init(KEY)
    noised = example.shrink_perturb(params, 0.6, KEY)
    expected = flat(shrink_perturb(quickstart.model, KEY, unflat(params), 0.6))
    for name in params:
        np.testing.assert_allclose(noised[name], expected[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", ["cross_entropy", "maxent", "distillation"])
def test_losses_and_gradients_are_those_of_the_package(example, quickstart, loss):
    lm, params = quickstart.model, example.init(KEY)
    teacher = example.init(jax.random.key(1))
    retain, forget = (next(example.batches(example.make_rows(part), "x")) for part in ("+-", "*/"))
    batches = [retain, forget] if loss == "maxent" else [retain]

    def of_package(params):
        if loss == "maxent":
            batch = {"retain": rows(retain), "forget": rows(forget)}
            return maxent(lm, params, {}, batch, KEY)[0]
        if loss == "distillation":
            return forward_kl(lm, params, Frozen(lm, unflat(teacher)), rows(retain))
        return cross_entropy(lm, params, rows(retain))

    value, gradient = jax.value_and_grad(getattr(example, loss))(params, teacher, *batches)
    expected, expected_gradient = jax.value_and_grad(of_package)(unflat(params))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, array in flat(expected_gradient).items():
        np.testing.assert_allclose(gradient[name], array, rtol=1e-3, atol=1e-6)

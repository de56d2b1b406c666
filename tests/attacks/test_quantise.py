"""Quantisation, bit for bit as by NumPy, a weight at a time."""

from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from undo_jax.attacks.quantise import FP4, NF4, quantise, quantised
from undo_jax.models import hf
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

# As published: QLoRA's appendix E to seven digits, and bitsandbytes' table.
PUBLISHED = {
    "nf4": [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0,
            0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1],
    "fp4": [-1, -2 / 3, -1 / 2, -1 / 3, -1 / 4, -1 / 6, -1 / 192, 0,
            1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1],
}  # fmt: skip
CASES = [
    pytest.param(rule, group, width, marks=[pytest.mark.slow] if group else [])
    for rule in ("nf4", "fp4", "int8", "int4")
    for group in (None, 32)
    for width in ((130,) if group is None else (48, 130))
]


def by_numpy(w, rule, group):
    """[L, in, out], one group after another."""
    made = np.empty_like(w)
    for layer, matrix in enumerate(np.swapaxes(w, 1, 2)):
        if rule in ("nf4", "fp4"):
            parts = [matrix.reshape(-1)]
            size = group or 64
        else:
            parts, size = list(matrix), group or {"int8": 10**9, "int4": 128}[rule]
        found = []
        for part in parts:
            for start in range(0, len(part), size):
                block = part[start : start + size]
                most = np.float32(max(abs(x) for x in block))
                found += [_rounded(x, most, rule) for x in block]
        made[layer] = np.array(found, np.float32).reshape(matrix.shape).T
    return made


def _rounded(x, most, rule):
    if most == 0:
        return np.float32(0)
    if rule in ("nf4", "fp4"):
        levels = np.array(NF4 if rule == "nf4" else FP4, np.float32)
        return levels[np.argmin(np.abs(np.float64(x / most) - levels))] * most
    scale = most / np.float32({"int8": 127, "int4": 7}[rule])
    return np.float32(np.rint(x / scale)) * scale


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    made = {n: rng.normal(0, 0.1, (2, n, 10)).astype(np.float32) for n in (48, 130)}
    for one in made.values():
        one[0, :, 3] = 0  # a column, and blocks, of nothing
    return made


@pytest.mark.parametrize(("rule", "group", "width"), CASES)
def test_it_is_numpys_bit_for_bit(weights, rule, group, width):
    attack = quantise(rule=rule, group=group)
    own, everywhere = weights[width], np.ones((7, 3), np.float32) / 3
    params = {
        "embedding": everywhere,
        "layers": {"mlp": {"up": own}, "norm": everywhere},
    }
    made = jax.jit(partial(attack.prepare, None))(params, jax.random.key(0))
    np.testing.assert_array_equal(made["layers"]["mlp"]["up"], by_numpy(own, rule, group))
    for kept in (made["embedding"], made["layers"]["norm"]):
        np.testing.assert_array_equal(kept, everywhere)


@pytest.mark.parametrize("rule", ["nf4", "int4"])
def test_a_group_that_is_larger_than_all_weights_is_all_of_them(rule):
    """And nothing fills it up: 2^40 numbers are 4 TiB."""
    w = {"layers": {"up": np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)}}
    found = quantised(None, w, None, rule=rule, group=2**40)["layers"]["up"]
    np.testing.assert_array_equal(found, by_numpy(w["layers"]["up"], rule, 2**40))


@pytest.mark.parametrize("rule", ["nf4", "fp4"])
def test_the_levels_are_those_published(rule):
    levels = np.array(NF4 if rule == "nf4" else FP4)
    np.testing.assert_allclose(levels, PUBLISHED[rule], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("rule", "step"), [("int8", 1 / 254), ("int4", 1 / 14)])
def test_the_error_is_at_most_half_a_step(weights, rule, step):
    own = weights[130]
    made = quantised(None, {"layers": {"up": own}}, None, rule=rule, group=None)["layers"]["up"]
    most = np.abs(own).max(axis=1, keepdims=True)
    assert (np.abs(made - own) <= step * most * (1 + 1e-5)).all()


def test_names_and_what_is_refused():
    how = Training(2, 8, AdamW(), 1)
    assert quantise().name == "quantise-nf4" and quantise().training is None
    assert quantise(how, (1e-3,), rule="int4").name == "quantise-int4-relearn"
    with pytest.raises(ValueError, match="rule='int3': choose one of nf4, fp4, int8, int4"):
        quantise(rule="int3")
    with pytest.raises(ValueError, match="group=0: give a whole number of weights above 0"):
        quantise(group=0)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["nf4", "fp4", "int8", "int4"])
def test_it_is_what_the_rule_makes_of_an_exported_model(rule, tmp_path):
    """Of the files of a Hugging Face folder, whose matrices are [out, in], one per layer."""
    lm = preset("tiny", family="gemma2", layers=2, width=24, feed_forward=40, vocabulary=32)
    mesh, params = make_mesh(MeshShape()), jax.jit(lm.init)(jax.random.key(0))
    hf.save(tmp_path / "hf", lm, params)
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    for name, w in tensors.items():
        if ".layers." in name and w.ndim == 2:
            tensors[name] = np.ascontiguousarray(by_numpy(w.T[None], rule, None)[0].T)
    save_file(tensors, file, metadata={"format": "pt"})
    imported = hf.load(tmp_path / "hf", lm, mesh)
    made = jax.jit(partial(quantise(rule=rule).prepare, lm))(params, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, made, imported)
    assert not np.array_equal(made["layers"]["mlp"]["up"], params["layers"]["mlp"]["up"])

"""Every file of undo_jax/noises/ keeps the contract of a noise; then each noise's own mathematics.

A new noise needs no edit here, unless it has keyword arguments without a default: their values then
go into `ARGUMENTS`. One in which nothing is random goes into `SAME_FOR_ALL_KEYS`.
"""

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import undo_jax.noises
from undo_jax.models.gemma2 import preset
from undo_jax.models.transformer import Transformer
from undo_jax.noises import leaf_key
from undo_jax.noises.fresh import fresh
from undo_jax.noises.prune import prune
from undo_jax.noises.random_mask import random_mask
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.noises.targeted import targeted
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import path_name, shardings
from undo_jax.training.optim import Trains, share

PARTS = Trains(((r"/mlp/", (1, 2)), (r"embedding", None), (r"before_mlp/norm", (2,))))
ARGUMENTS: dict[str, dict] = {"targeted": {"parts": PARTS}, "random_mask": {"share": 0.4}}
SAME_FOR_ALL_KEYS = ("prune",)  # names of noises in which nothing is random
FOLDER = Path(undo_jax.noises.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
LM = preset("2B", layers=3, width=32, feed_forward=64, heads=2, kv_heads=1, head_width=16,
       attention_scale=0.25, vocabulary=48, init_stddev=0.2, dtype="float32")  # fmt: skip
KEY = jax.random.key(3)
PARAMS = jax.tree.map(  # nothing is at zero, the norms included
    lambda w: 1 + jax.random.normal(jax.random.key(w.size), w.shape),
    jax.jit(LM.init)(jax.random.key(0)),
)


@pytest.fixture(scope="module", params=NAMES)
def noise(request):
    """`(key, params, alpha) -> params`, jitted, with alpha traced."""
    function = getattr(importlib.import_module(f"undo_jax.noises.{request.param}"), request.param)
    return jax.jit(partial(function, LM, **ARGUMENTS.get(request.param, {})))


def _named(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_noises_are_found():
    assert {"fresh", "shrink_perturb"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    function = getattr(importlib.import_module(f"undo_jax.noises.{name}"), name)
    parameters = inspect.signature(function).parameters
    assert function.__module__ == f"undo_jax.noises.{name}"
    assert list(parameters)[:4] == ["lm", "key", "params", "alpha"]
    rest = list(parameters.values())[4:]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)
    assert {p.name for p in rest if p.default is p.empty} == set(ARGUMENTS.get(name, {}))


def test_the_default_beta_is_that_of_the_paper():
    assert inspect.signature(shrink_perturb).parameters["beta"].default == 0.1


def test_alpha_zero_is_the_identity(noise):
    jax.tree.map(np.testing.assert_array_equal, noise(KEY, PARAMS, 0.0), PARAMS)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_is_finite_and_keeps_the_tree(noise, alpha):
    damaged = noise(KEY, PARAMS, alpha)
    assert jax.tree.structure(damaged) == jax.tree.structure(PARAMS)
    for new, old in zip(jax.tree.leaves(damaged), jax.tree.leaves(PARAMS), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert bool(jnp.all(jnp.isfinite(new)))
    assert _changed(damaged)


def _changed(damaged):
    """Names of the leaves in which something is changed."""
    before = _named(PARAMS)
    return {
        name for name, leaf in _named(damaged).items() if not np.array_equal(leaf, before[name])
    }


@pytest.mark.parametrize("name", ["fresh", "shrink_perturb", "random_mask"])
def test_noises_of_a_whole_model_change_every_leaf(name):
    function = getattr(importlib.import_module(f"undo_jax.noises.{name}"), name)
    assert _changed(function(LM, KEY, PARAMS, 0.3, **ARGUMENTS.get(name, {}))) == {*_named(PARAMS)}


def test_depends_on_the_key_alone(noise, request):
    first, again = noise(KEY, PARAMS, 0.5), noise(KEY, PARAMS, 0.5)
    other = noise(jax.random.key(4), PARAMS, 0.5)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    drawn = request.node.callspec.params["noise"] not in SAME_FOR_ALL_KEYS
    for name, leaf in _named(first).items():
        if name in _changed(first) and not name.endswith("norm"):
            assert np.array_equal(leaf, _named(other)[name]) != drawn, name


@dataclass(frozen=True)
class DrawnByPath(Transformer):
    """A decoder whose initialisation of a leaf does not depend on the other leaves, either."""

    def init(self, key):
        draw = lambda path, w: jax.random.normal(leaf_key(key, path), w.shape)  # noqa: E731
        return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(super().init, key))


@pytest.mark.parametrize("name", NAMES)
def test_a_leafs_noise_does_not_depend_on_which_other_leaves_there_are(name):
    """It is the same in a model that has biases and a head, too."""
    function = getattr(importlib.import_module(f"undo_jax.noises.{name}"), name)
    fields = {field.name: getattr(LM, field.name) for field in dataclasses.fields(LM)}
    small, large = (
        DrawnByPath(**{**fields, "qkv_bias": more, "own_head": more}) for more in (False, True)
    )
    key = jax.random.key(0)
    damaged, expected = (
        _named(function(lm, KEY, lm.init(key), 0.5, **ARGUMENTS.get(name, {})))
        for lm in (large, small)
    )
    assert {*damaged} > {*expected}
    for leaf, values in expected.items():
        message = f"{leaf}: draw its noise with undo_jax.noises.leaf_key(key, path)"
        np.testing.assert_array_equal(damaged[leaf], values, message)


def test_sharded_equals_unsharded(noise):
    mesh = make_mesh(MeshShape(sweep=1, data=2, fsdp=2, tensor=2))
    placed = jax.device_put(PARAMS, shardings(PARAMS, LM.rules, mesh))
    with jax.set_mesh(mesh):
        sharded = noise(KEY, placed, 0.6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        jax.device_get(sharded),
        jax.device_get(noise(KEY, PARAMS, 0.6)),
    )


def test_shrink_perturb_only_shrinks_vectors():
    alpha = 0.3
    damaged, params = _named(shrink_perturb(LM, KEY, PARAMS, alpha)), _named(PARAMS)
    vectors = {name for name in params if name.endswith("norm")}
    assert params["layers/before_mlp/norm"].shape == (3, 32)  # stacked: two axes, still vectors
    assert len(vectors) == 5 and "final/norm" in vectors
    for name in vectors:
        np.testing.assert_array_equal(damaged[name], (1 - alpha) * params[name], name)


def _drawn(alpha, beta, params=PARAMS, key=KEY):
    """N of every matrix: the residual of the shrunk weights over αβ."""
    damaged, before = _named(shrink_perturb(LM, key, params, alpha, beta=beta)), _named(params)
    return {
        name: np.asarray((damaged[name] - (1 - alpha) * w) / (alpha * beta))
        for name, w in before.items()
        if not name.endswith("norm")
    }


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.1), (0.25, 1.0)])
def test_shrink_perturb_draws_xavier_uniform_for_matrices(alpha, beta):
    drawn = _drawn(alpha, beta)
    assert len(drawn) == 8 and "embedding" in drawn
    for name, noise in drawn.items():
        bound = np.sqrt(6 / (noise.shape[-2] + noise.shape[-1]))  # fan in + fan out
        assert np.abs(noise).max() < bound * 1.001, name
        assert np.abs(noise).max() > bound * 0.95, name
        assert abs(noise.std() / (bound / np.sqrt(3)) - 1) < 0.05, name
        assert abs(noise.mean()) < 4 * bound / np.sqrt(3 * noise.size), name


def test_shrink_perturb_draws_every_layer_and_leaf_apart():
    drawn = _drawn(0.5, 1.0)
    matrices = {
        (name, layer): one.ravel()
        for name, stack in drawn.items()
        for layer, one in enumerate(stack if name.startswith("layers/") else stack[None])
    }
    for name, one in matrices.items():
        for other, two in matrices.items():
            if name < other and one.size == two.size:
                assert abs(np.corrcoef(one, two)[0, 1]) < 0.2, (name, other)


def test_shrink_perturb_noise_of_a_leaf_ignores_the_other_leaves():
    """A model with a leaf more or less, or in another order, gets the same noise elsewhere."""
    layers = {name: part for name, part in PARAMS["layers"].items() if name != "attention"}
    fewer = _drawn(0.5, 0.1, {"layers": layers, "final": PARAMS["final"]})
    whole = _drawn(0.5, 0.1)
    assert set(fewer) == {"layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"}
    for name, noise in fewer.items():
        np.testing.assert_array_equal(noise, whole[name], name)


def test_shrink_perturb_without_beta_only_shrinks():
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(new, (1 - 0.4) * old),
        shrink_perturb(LM, KEY, PARAMS, 0.4, beta=0.0),
        PARAMS,
    )


def test_fresh_is_the_initialisation_at_alpha_one_and_the_mean_half_way():
    draw, init = jax.jit(partial(fresh, LM)), jax.jit(LM.init)(KEY)
    jax.tree.map(np.testing.assert_array_equal, draw(KEY, PARAMS, 1.0), init)
    jax.tree.map(
        lambda new, w, first: np.testing.assert_allclose(new, (w + first) / 2, rtol=1e-6),
        draw(KEY, PARAMS, 0.5),
        PARAMS,
        init,
    )


def test_targeted_is_shrink_perturb_there_and_nothing_elsewhere():
    damaged = _named(targeted(LM, KEY, PARAMS, 0.6, parts=PARTS, beta=0.2))
    whole, before = _named(shrink_perturb(LM, KEY, PARAMS, 0.6, beta=0.2)), _named(PARAMS)
    layers = dict.fromkeys(["layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"], (1, 2))
    layers |= {"layers/before_mlp/norm": (2,)}
    for name, leaf in damaged.items():
        wanted = np.array(whole[name] if name == "embedding" else before[name])
        for layer in layers.get(name, ()):
            wanted[layer] = whole[name][layer]
        np.testing.assert_array_equal(leaf, wanted, name)


def test_the_share_of_the_weights_that_targeted_changes():
    shapes = jax.eval_shape(LM.init, KEY)
    width, feed_forward, vocabulary = 32, 64, 48
    attention = width * 16 * (2 + 1 + 1) + 2 * 16 * width  # query, key, value, output
    whole = 3 * (3 * width * feed_forward + attention + 4 * width) + width + vocabulary * width
    changed = 2 * 3 * width * feed_forward + width + vocabulary * width
    assert share(PARTS, shapes) == changed / whole
    damaged = targeted(LM, KEY, PARAMS, 0.5, parts=PARTS)
    equal = jax.tree.map(lambda new, old: np.sum(new == old), damaged, PARAMS)
    assert sum(jax.tree.leaves(equal)) == whole - changed


def test_targeted_refuses_parts_that_are_not_there():
    with pytest.raises(ValueError, match="^trains: 'mlb' finds none of embedding, final/norm"):
        targeted(LM, KEY, PARAMS, 0.5, parts=Trains((("mlb", None),)))


def test_random_mask_changes_a_share_of_the_weights_as_shrink_perturb_does():
    damaged = _named(random_mask(LM, KEY, PARAMS, 0.6, share=0.3, beta=0.2))
    whole, before = _named(shrink_perturb(LM, KEY, PARAMS, 0.6, beta=0.2)), _named(PARAMS)
    for name, leaf in damaged.items():
        mask, size = np.asarray(leaf != before[name]), leaf.size
        np.testing.assert_array_equal(leaf, np.where(mask, whole[name], before[name]), name)
        assert abs(mask.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / size), name  # 4 standard errors
    gate, up = (np.asarray(damaged[n] != before[n]) for n in ("layers/mlp/gate", "layers/mlp/up"))
    assert abs(np.corrcoef(gate.ravel(), up.ravel())[0, 1]) < 0.06  # masks of their own


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_random_mask_refuses_a_share_that_is_none(wrong):
    with pytest.raises(ValueError, match="is outside \\[0, 1\\]: give the share of weights"):
        random_mask(LM, KEY, PARAMS, 0.5, share=wrong)


@pytest.mark.parametrize("alpha", [0.25, 0.77, 1.0])
def test_prune_sets_the_smallest_weights_of_each_matrix_to_zero(alpha):
    pruned = _named(jax.jit(partial(prune, LM))(KEY, PARAMS, alpha))
    for name, w in _named(PARAMS).items():
        wanted = np.array(w)
        matrices = wanted if name.startswith("layers/") else wanted[None]
        for one in matrices if not name.endswith("norm") else ():
            order = np.argsort(np.abs(one), axis=None)
            one.reshape(-1)[order[: round(alpha * one.size)]] = 0
        np.testing.assert_array_equal(pruned[name], wanted, name)

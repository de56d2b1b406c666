"""Every file of undo_jax/methods/ keeps the contract of an unlearning method.

A new method needs no edit here, unless it has keyword arguments without a default: their values
then go into `ARGUMENTS`.
"""

import importlib
import inspect
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import undo_jax.methods
from undo_jax.losses import cross_entropy, uniform_kl
from undo_jax.methods.maxent import maxent
from undo_jax.methods.repnoise import repnoise
from undo_jax.methods.rmu import rmu
from undo_jax.methods.sam import sam
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh
from undo_jax.runtime.sharding import path_name, shardings
from undo_jax.training.train_step import rows
from undo_jax.types import Frozen, Taps

ARGUMENTS = {"repnoise": {"method": maxent}, "rmu": {"read_layer": 2},
             "sam": {"method": maxent}}  # fmt: skip
TRACED = {  # arguments that the tests below change without compiling again
    "graddiff": {"retain_weight": 1.0},
    "maxent": {"retain_weight": 1.0},
    "npo": {"beta": 0.1, "retain_weight": 1.0},
    "repnoise": {"noise_weight": 0.001, "ascent_weight": 1.0},
    "rmu": {"coefficient": 6.0, "retain_weight": 200.0},
    "sam": {"rho": 0.05},
    "simnpo": {"beta": 4.5, "delta": 0.0, "forget_weight": 0.125, "retain_weight": 1.0},
    "undial": {"beta": 10.0, "retain_weight": 1.0},
}
OTHERS = {"rmu": {"direction_seed": 0}, "sam": {"trains": None}}  # further defaults
FOLDER = Path(undo_jax.methods.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
LM = preset("2B", layers=3, width=16, feed_forward=32, heads=2, kv_heads=2, head_width=8,
       attention_scale=8**-0.5, vocabulary=24, init_stddev=0.25, dtype="float32")  # fmt: skip
BASE = jax.jit(LM.init)(jax.random.key(1))
PARAMS = jax.tree.map(  # away from the base, as after a few steps; norms are not at zero either
    lambda w: w + 0.1 * jax.random.normal(jax.random.key(w.size), w.shape), BASE
)
KEY = jax.random.key(7)


def _rows(seed, low, high):
    tokens = np.random.default_rng(seed).integers(low, high, (8, 9), np.int32)
    mask = np.ones((8, 8), np.int32)
    mask[::2, 5:] = 0
    segments = np.cumsum(tokens % 3 == 0, axis=1)  # documents of a few tokens
    return rows(tokens, mask)._replace(segments=segments[:, :-1])


BATCH_OF_BOTH = {"retain": _rows(0, 0, 12), "forget": _rows(1, 12, 24)}


def _gradients(name, **fixed):
    """`(params, base, batch, key, traced) -> ((loss, metrics), (to params, to base))`, jitted."""
    function = getattr(importlib.import_module(f"undo_jax.methods.{name}"), name)

    def value(params, base, batch, key, traced):
        arguments = {**ARGUMENTS.get(name, {}), **fixed, **traced}
        return function(LM, params, {"base": Frozen(LM, base)}, batch, key, **arguments)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


_compiled = cache(_gradients)


def _at(name, params, **changes):
    traced = {**TRACED.get(name, {}), **changes}
    return _compiled(name)(params, BASE, BATCH_OF_BOTH, KEY, traced)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """A method's name, and its value and gradients."""
    return request.param, _at(request.param, PARAMS)


def _norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))))


def _close(one, other):
    """To 1e-5 of the largest entry of each leaf."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        jax.device_get(one),
        jax.device_get(other),
    )


def test_methods_are_found():
    wanted = {"graddiff", "maxent", "npo", "repnoise", "rmu", "sam", "simnpo", "undial"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    function = getattr(importlib.import_module(f"undo_jax.methods.{name}"), name)
    parameters = inspect.signature(function).parameters
    assert function.__module__ == f"undo_jax.methods.{name}"
    assert list(parameters)[:5] == ["lm", "params", "refs", "batch", "key"]
    for parameter in list(parameters.values())[5:]:
        assert parameter.kind is parameter.KEYWORD_ONLY
    missing = {p.name for p in list(parameters.values())[5:] if p.default is p.empty}
    assert missing == set(ARGUMENTS.get(name, {})), f"give {name} its arguments in ARGUMENTS"


@pytest.mark.parametrize("name", list(TRACED))
def test_defaults_are_those_of_the_reference(name):
    function = getattr(importlib.import_module(f"undo_jax.methods.{name}"), name)
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert defaults == {**TRACED[name], **OTHERS.get(name, {})}


def test_is_finite_and_scalar(case):
    _, ((loss, metrics), gradients) = case
    assert loss.shape == () and loss.dtype == jnp.float32
    assert metrics and all(value.shape == () for value in metrics.values())
    for leaf in jax.tree.leaves((loss, metrics, gradients)):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_gradient_reaches_only_params(case):
    name, (_, (to_params, to_base)) = case
    assert _norm(to_params) > 0
    assert _norm(to_base) == 0, f"{name} differentiates its reference: use stop_gradient"


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sam"}))
def test_gradient_reaches_the_weights_of_tokens(name):
    """The slope between more and less of each. (SAM has no second derivative, and says so.)"""
    function = getattr(importlib.import_module(f"undo_jax.methods.{name}"), name)

    def value(weights):
        batch = {part: BATCH_OF_BOTH[part]._replace(weights=w) for part, w in weights.items()}
        refs = {"base": Frozen(LM, BASE)}
        return function(LM, PARAMS, refs, batch, KEY, **ARGUMENTS.get(name, {}))[0]

    weights = {part: rows.weights for part, rows in BATCH_OF_BOTH.items()}
    share = jnp.linspace(0, 1, 64).reshape(8, 8)
    change = {"forget": share * weights["forget"], "retain": -share * weights["retain"]}
    more, less = ({p: w + t * change[p] for p, w in weights.items()} for t in (0.1, -0.1))
    run = jax.jit(jax.value_and_grad(value))
    slope = (run(more)[0] - run(less)[0]) / 0.2
    along = sum(jnp.vdot(d, change[part]) for part, d in run(weights)[1].items())
    np.testing.assert_allclose(along, slope, rtol=0.01)
    assert abs(slope) > 0.01


def test_is_deterministic_in_its_key(case):
    name, first = case
    jax.tree.map(np.testing.assert_array_equal, first, _at(name, PARAMS))


@pytest.mark.slow
def test_sharded_equals_unsharded(case):
    name, whole = case
    mesh = make_mesh(MeshShape(sweep=1, data=2, fsdp=2, tensor=2))
    placed = jax.device_put((PARAMS, BASE), shardings((PARAMS, BASE), LM.rules, mesh))
    batch = jax.device_put(BATCH_OF_BOTH, NamedSharding(mesh, P(BATCH)))
    with jax.set_mesh(mesh):
        _close(_gradients(name)(*placed, batch, KEY, TRACED.get(name, {})), whole)


@jax.jit
def _measures(params):
    """What the methods change, measured without them."""
    forget, retain = BATCH_OF_BOTH["forget"], BATCH_OF_BOTH["retain"]
    direction = jax.random.normal(jax.random.key(0), (16,))
    target = 6.0 * direction / jnp.sqrt(jnp.sum(direction**2))
    away = (LM.activations(params, forget.inputs, 2) - target) ** 2
    wanted = LM.activations(BASE, retain.inputs, 2)
    drift = (LM.activations(params, retain.inputs, 2) - wanted) ** 2
    return {
        "forget_ce": cross_entropy(LM, params, forget),
        "retain_ce": cross_entropy(LM, params, retain),
        "forget_uniform_kl": uniform_kl(LM, params, forget),
        "forget_mse": jnp.sum(forget.weights[..., None] * away) / 16,
        "retain_mse": jnp.sum(retain.weights[..., None] * drift) / 16,
    }


def _moves(name, **changes):
    """How each measure moves in one short gradient step of a method."""
    _, (gradient, _) = _at(name, PARAMS, **changes)
    rate = 0.01 / _norm(gradient)
    after = _measures(jax.tree.map(lambda w, g: w - rate * g, PARAMS, gradient))
    before = _measures(PARAMS)
    return {measure: float(after[measure]) - float(before[measure]) for measure in before}


@pytest.mark.parametrize(
    ("name", "forget", "retain", "sign"),
    [
        ("graddiff", "forget_ce", "retain_ce", -1),
        ("maxent", "forget_uniform_kl", "retain_ce", 1),
        ("rmu", "forget_mse", "retain_mse", 1),
    ],
)
def test_loss_is_what_its_docstring_says(name, forget, retain, sign):
    (loss, metrics), _ = _at(name, PARAMS, retain_weight=3.0)
    wanted = _measures(PARAMS)
    np.testing.assert_allclose(loss, sign * wanted[forget] + 3 * wanted[retain], rtol=1e-4)
    assert set(metrics) == {forget, retain}
    for measure, value in metrics.items():
        np.testing.assert_allclose(value, wanted[measure], rtol=1e-5)


def test_graddiff_raises_forget_and_lowers_retain():
    moves = _moves("graddiff")
    assert moves["forget_ce"] > 0 > moves["retain_ce"]


def test_maxent_flattens_forget_and_lowers_retain():
    moves = _moves("maxent")
    assert moves["forget_uniform_kl"] < 0 and moves["retain_ce"] < 0


def test_rmu_pulls_forget_to_its_direction_and_retain_to_the_base():
    assert _moves("rmu", retain_weight=0.0)["forget_mse"] < 0
    assert _moves("rmu", retain_weight=1000.0)["retain_mse"] < 0


def test_rmu_has_no_gradient_from_the_layer_that_it_reads_on():
    _, (gradient, _) = _at("rmu", PARAMS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["layers"]):
        assert [bool(np.any(leaf[i])) for i in range(3)] == [True, True, False], path_name(path)


def test_rmu_pulls_towards_the_direction_of_its_seed():
    def towards(**seed):
        refs = {"base": Frozen(LM, BASE)}
        return rmu(LM, PARAMS, refs, BATCH_OF_BOTH, KEY, read_layer=2, **seed)[1]["forget_mse"]

    assert towards() == towards(direction_seed=0) != towards(direction_seed=1)


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_sam_is_its_method_at_the_worst_place_near(rho):
    """To first order, and away by rho exactly."""
    _, (gradient, _) = _at("maxent", PARAMS)
    scale = rho / _norm(gradient)
    there = _at("maxent", jax.tree.map(lambda w, g: w + scale * g, PARAMS, gradient))
    here = _at("sam", PARAMS, rho=rho)
    _close(here, there)
    rise = float(here[0][0]) - float(_at("maxent", PARAMS)[0][0])
    assert rise > 1e-4 if rho else abs(rise) < 1e-6


def test_sam_of_a_gradient_that_is_zero_is_its_method():
    def flat(lm, params, refs, batch, key):
        return jnp.sum(params["embedding"]) * 0.0, {"flat": jnp.zeros(())}

    value, gradient = jax.value_and_grad(sam, argnums=1, has_aux=True)(
        LM, PARAMS, {}, BATCH_OF_BOTH, KEY, method=flat
    )
    assert float(value[0]) == 0.0 and _norm(gradient) == 0.0


def _numpy_ce(hidden, rows, softcap=None):
    """In float64."""
    z = np.asarray(hidden, np.float64) @ np.asarray(PARAMS["embedding"], np.float64).T
    z = z if softcap is None else softcap * np.tanh(z / softcap)
    log_p = z - np.log(np.sum(np.exp(z), -1, keepdims=True))
    return -np.sum(rows.weights * np.take_along_axis(log_p, rows.targets[..., None], -1)[..., 0])


def _numpy_mmd(x, z):
    """Pair by pair."""
    rows, kernel = np.concatenate([x, z]), np.zeros((len(x) * 2, len(x) * 2))
    distance = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
    scale = np.sum(distance) / (len(rows) ** 2 - len(rows)) / 4
    for power in range(5):
        kernel += np.exp(-distance / (scale * 2**power))
    n = len(x)
    return np.mean(kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n])


def _numpy_repnoise():
    """(MMD, CE on forget over depth, CE on retain), by states that other tests hold to a loop."""
    forget, layers = jax.tree.map(np.asarray, BATCH_OF_BOTH["forget"]), range(3)
    hidden, (states, made) = LM.tapped(PARAMS, forget.inputs, Taps(layers, layers))
    keys, here = jax.random.split(KEY, 3), (forget.weights > 0)[..., None]
    noises = [np.asarray(jax.random.normal(key, made[0].shape)) for key in keys]
    flat = lambda x: np.where(here, x, 0).reshape(8, -1).astype(np.float64)  # noqa: E731
    mmd = np.mean([_numpy_mmd(flat(x), flat(z)) for x, z in zip(made, noises, strict=True)])
    scale = 1 + np.asarray(PARAMS["final"]["norm"], np.float64)
    terms = [_numpy_ce(hidden, forget, 30.0)]
    for state in np.asarray(states, np.float64):
        normed = state / np.sqrt(np.mean(state**2, -1, keepdims=True) + 1e-6) * scale
        terms.append(_numpy_ce(normed, forget))
    retain = BATCH_OF_BOTH["retain"]
    return mmd, np.mean(terms), _numpy_ce(LM.hidden(PARAMS, retain.inputs), retain, 30.0)


@pytest.mark.parametrize(("beta", "a"), [(0.0, 0.0), (1.0, 0.0), (0.0, 2.0), (4.0, 0.1)])
def test_repnoise_is_that_of_numpy(beta, a):
    (loss, metrics), _ = _at("repnoise", PARAMS, noise_weight=beta, ascent_weight=a)
    mmd, harm, retain = _numpy_repnoise()
    within = float(_at("maxent", PARAMS)[0][0])
    np.testing.assert_allclose(loss, within + retain + beta * mmd - a * np.log(1 + harm), rtol=1e-5)
    np.testing.assert_allclose(metrics["repnoise_mmd"], mmd, rtol=1e-4)
    np.testing.assert_allclose(metrics["repnoise_forget_ce"], harm, rtol=1e-5)
    np.testing.assert_allclose(metrics["repnoise_retain_ce"], retain, rtol=1e-5)
    assert {"forget_uniform_kl", "retain_ce"} < set(metrics)
    assert mmd > 0.01 and harm > 1


def test_repnoise_draws_its_noise_anew():
    refs = {"base": Frozen(LM, BASE)}
    draw = lambda key: repnoise(LM, PARAMS, refs, BATCH_OF_BOTH, key, method=maxent)[0]  # noqa: E731
    assert draw(jax.random.key(1)) != draw(jax.random.key(2))


def test_repnoise_moves_towards_noise_and_away_from_forget():
    def after(**weights):
        _, (gradient, _) = _at("repnoise", PARAMS, **weights)
        _, (own, _) = _at("repnoise", PARAMS, noise_weight=0.0, ascent_weight=0.0)
        term = jax.tree.map(lambda g, o: g - o, gradient, own)
        rate = 0.01 / _norm(term)
        moved = jax.tree.map(lambda w, g: w - rate * g, PARAMS, term)
        return [_at("repnoise", p)[0][1] for p in (PARAMS, moved)]

    before, there = after(noise_weight=1.0, ascent_weight=0.0)
    assert there["repnoise_mmd"] < before["repnoise_mmd"]
    before, there = after(noise_weight=0.0, ascent_weight=1.0)
    assert there["repnoise_forget_ce"] > before["repnoise_forget_ce"]


def test_repnoise_of_one_row_is_refused():
    batch = jax.tree.map(lambda x: x[:1], BATCH_OF_BOTH)
    with pytest.raises(ValueError, match=r"^repnoise compares rows .* give batch_size 8, at least"):
        repnoise(LM, PARAMS, {}, batch, KEY, method=maxent)

"""The losses of a model against logits formed whole."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax import losses
from undo_jax.models.gemma2 import preset
from undo_jax.ops import head
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.train_step import rows
from undo_jax.types import Frozen

SMALL = {"layers": 1, "heads": 2, "kv_heads": 1, "head_width": 8, "init_stddev": 0.3}
LM = preset("tiny", width=16, feed_forward=16, final_softcap=2.0, **SMALL)
TEACHER = preset("tiny", width=8, feed_forward=16, final_softcap=3.0, **SMALL)
PARAMS, TEACHER_PARAMS = LM.init(jax.random.key(0)), TEACHER.init(jax.random.key(1))
TOKENS = np.random.default_rng(0).integers(0, 24, (4, 8), np.int32)
MASK = np.tril(np.ones((4, 7), np.int32), 3)
BATCH = {"train": rows(TOKENS, MASK)}
REFS = {"teacher": Frozen(TEACHER, TEACHER_PARAMS)}
KEY = jax.random.key(0)


def _log_p(lm, params):
    hidden = lm.hidden(params, TOKENS[:, :-1])
    z = np.asarray(hidden, np.float64) @ np.asarray(lm.table(params), np.float64).T
    z = lm.softcap * np.tanh(z / lm.softcap)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _mean(values):
    return (values * MASK).sum() / MASK.sum()


def _expected():
    log_p, log_t = _log_p(LM, PARAMS), _log_p(TEACHER, TEACHER_PARAMS)
    nll = -np.take_along_axis(log_p, TOKENS[:, 1:, None], -1)[..., 0]
    return {
        "language_modelling": _mean(nll),
        "distillation": _mean((np.exp(log_t) * (log_t - log_p)).sum(-1)),
        "uniform_kl": _mean(-np.log(24) - log_p.mean(-1)),
    }


@pytest.mark.parametrize("name", ["language_modelling", "distillation"])
def test_objective_is_the_mean_over_unmasked_tokens(name):
    value, _ = getattr(losses, name)(LM, PARAMS, REFS, BATCH, jax.random.key(0))
    np.testing.assert_allclose(value, _expected()[name], rtol=1e-5)


def test_uniform_kl():
    value = losses.uniform_kl(LM, PARAMS, BATCH["train"])
    np.testing.assert_allclose(value, _expected()["uniform_kl"], rtol=1e-5)


def test_filtered_distillation_is_half_of_each():
    """Rows on the two sides differ: the mask is that of forget alone."""
    other = rows(TOKENS, 1 - MASK)
    batch = {"retain": BATCH["train"], "forget": other}
    value, metrics = losses.filtered_distillation(LM, PARAMS, REFS, batch, KEY)
    uniform = -np.log(24) - _log_p(LM, PARAMS).mean(-1)
    forget = (uniform * (1 - MASK)).sum() / (1 - MASK).sum()
    retain = _expected()["distillation"]
    assert abs(forget / retain - 1) > 0.05 and abs(forget / _expected()["uniform_kl"] - 1) > 0.01
    np.testing.assert_allclose(value, (retain + forget) / 2, rtol=1e-5)
    found = metrics["retain_kl"], metrics["forget_uniform_kl"]
    np.testing.assert_allclose(found, (retain, forget), rtol=1e-5)


TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 2.5])
DIVERGENCES = {
    "distillation": lambda p, t: t * np.log(t / p),
    "reverse_distillation": lambda p, t: p * np.log(p / t),
    "jsd_distillation": lambda p, t: (
        p * np.log(2 * p / (p + t)) / 2 + t * np.log(2 * t / (p + t)) / 2
    ),
}


@TEMPERATURES
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_from_a_teacher(name, temperature):
    """τ² times that of the distributions whose logits are divided by τ."""
    soft = [_log_p(LM, PARAMS) / temperature, _log_p(TEACHER, TEACHER_PARAMS) / temperature]
    p, t = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in soft)
    loss = jax.jit(lambda tau: getattr(losses, name)(LM, PARAMS, REFS, BATCH, KEY, temperature=tau))
    fixed, _ = getattr(losses, name)(LM, PARAMS, REFS, BATCH, KEY, temperature=temperature)
    wanted = temperature**2 * _mean(DIVERGENCES[name](p, t).sum(-1))
    np.testing.assert_allclose([fixed, loss(temperature)[0]], wanted, rtol=1e-5)


def test_at_a_temperature_of_one_forward_kl_is_the_loss_that_has_a_kernel(monkeypatch):
    """And at another it is not."""
    kernels = []
    monkeypatch.setattr(head, "weighted_sum", lambda loss, *_, **__: kernels.append(loss.kernel))
    for temperature in (1, 1.0, 2.0):
        losses.forward_kl(LM, PARAMS, REFS["teacher"], BATCH["train"], temperature)
    assert kernels == ["teacher", "teacher", None]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("loss", [losses.forward_kl, losses.reverse_kl, losses.jsd])
def test_a_temperature_is_above_zero(loss, temperature):
    said = f"^temperature={temperature}: it must be above 0 and finite$"
    with pytest.raises(ValueError, match=said):
        loss(LM, PARAMS, REFS["teacher"], BATCH["train"], temperature)


@pytest.mark.parametrize("temperature", [1e38, 1e200, 10**30, 1e-30])
@pytest.mark.parametrize("loss", [losses.forward_kl, losses.reverse_kl, losses.jsd])
def test_the_square_of_a_temperature_is_a_float32(loss, temperature):
    with pytest.raises(ValueError, match="fp32 must hold its square: give e.g. 2$"):
        loss(LM, PARAMS, REFS["teacher"], BATCH["train"], temperature)


@pytest.mark.parametrize("shape", [MeshShape(data=8), MeshShape(data=1, fsdp=2, tensor=4)], ids=str)
@pytest.mark.parametrize("loss", [losses.forward_kl, losses.reverse_kl])
def test_no_gradient_reaches_a_teacher(loss, shape):
    def value(params):
        return loss(LM, PARAMS, Frozen(TEACHER, params), BATCH["train"])

    with jax.set_mesh(make_mesh(shape)):
        gradient = jax.jit(jax.grad(value))(TEACHER_PARAMS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_teacher_is_matched_by_itself(name):
    refs = {"teacher": Frozen(LM, PARAMS)}
    loss = getattr(losses, name)
    value, gradient = jax.value_and_grad(lambda p: loss(LM, p, refs, BATCH, KEY)[0])(PARAMS)
    assert abs(float(value)) < 1e-6
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient)) < 1e-6


@pytest.mark.parametrize("k", [1, 5, 23])
def test_top_k_distillation_sees_k_tokens_and_one_rest(k):
    """In float64, from sorted probabilities."""
    p, t = (
        np.exp(_log_p(*of).astype(np.float64)) for of in ((LM, PARAMS), (TEACHER, TEACHER_PARAMS))
    )
    order = np.argsort(-t, axis=-1)
    p, t = (np.take_along_axis(x, order, -1) for x in (p, t))
    p, t = (np.concatenate([x[..., :k], x[..., k:].sum(-1, keepdims=True)], -1) for x in (p, t))
    value, _ = losses.top_k_distillation(LM, PARAMS, REFS, BATCH, KEY, k=k)
    np.testing.assert_allclose(value, _mean((t * np.log(t / p)).sum(-1)), rtol=1e-5)
    whole, _ = losses.distillation(LM, PARAMS, REFS, BATCH, KEY)
    assert value < 0.99 * whole if k < 23 else value == pytest.approx(float(whole), rel=1e-5)


def test_the_gradient_of_top_k_is_finite_where_nothing_is_left():
    """A teacher that is certain: the rest has no mass."""
    certain = {**TEACHER_PARAMS, "embedding": 100.0 * TEACHER_PARAMS["embedding"]}
    refs = {"teacher": Frozen(replace(TEACHER, final_softcap=None), certain)}
    loss = lambda p: losses.top_k_distillation(LM, p, refs, BATCH, KEY, k=2)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(PARAMS)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("k", [0, 24])
def test_k_is_a_number_of_tokens_but_not_of_all(k):
    with pytest.raises(ValueError, match=f"^k={k}: give a number of tokens from 1 to 23$"):
        losses.top_k_distillation(LM, PARAMS, REFS, BATCH, KEY, k=k)


SAME = replace(TEACHER, width=16, final_softcap=None)
SAME_PARAMS = SAME.init(jax.random.key(2))


@pytest.mark.parametrize("state_weight", [0.0, 0.7])
def test_activation_distillation_adds_the_mean_error_of_the_residual_states(state_weight):
    refs = {"teacher": Frozen(SAME, SAME_PARAMS)}
    inputs, errors = TOKENS[:, :-1], []
    for layer in range(2):  # the embedding and the state after the only layer
        own, other = (
            np.asarray(lm.activations(params, inputs, layer), np.float64)
            for lm, params in ((LM, PARAMS), (SAME, SAME_PARAMS))
        )
        errors.append(_mean(((own - other) ** 2).mean(-1)))
    kl, _ = losses.distillation(LM, PARAMS, refs, BATCH, KEY)
    loss = partial(losses.activation_distillation, state_weight=state_weight)
    value, metrics = loss(LM, PARAMS, refs, BATCH, KEY)
    np.testing.assert_allclose(value, kl + state_weight * np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(metrics["state_mse"], np.mean(errors), rtol=1e-5)


def test_activation_distillation_has_no_gradient_in_the_teacher():
    def value(params):
        refs = {"teacher": Frozen(SAME, params)}
        return losses.activation_distillation(LM, PARAMS, refs, BATCH, KEY)[0]

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(value)(SAME_PARAMS)))


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (TEACHER, "width=16, its teacher 8"),
        (replace(SAME, layers=2), "layers=1, its teacher 2"),
    ],
)
def test_activation_distillation_refuses_a_teacher_of_another_size(teacher, said):
    refs = {"teacher": Frozen(teacher, teacher.init(KEY))}
    with pytest.raises(ValueError, match=f"^the student has {said}: their states cannot be"):
        losses.activation_distillation(LM, PARAMS, refs, BATCH, KEY)

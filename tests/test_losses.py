"""The losses of a model against logits formed whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax import losses
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import preset
from undo_jax.sharding import MeshShape, make_mesh
from undo_jax.train import rows
from undo_jax.types import Frozen

SMALL = {"layers": 1, "heads": 2, "kv_heads": 1, "head_width": 8, "init_stddev": 0.3}
LM = Functional(preset("tiny", width=16, feed_forward=16, final_softcap=2.0, **SMALL))
TEACHER = Functional(preset("tiny", width=8, feed_forward=16, final_softcap=3.0, **SMALL))
PARAMS, TEACHER_PARAMS = LM.init(jax.random.key(0)), TEACHER.init(jax.random.key(1))
TOKENS = np.random.default_rng(0).integers(0, 24, (4, 8), np.int32)
MASK = np.tril(np.ones((4, 7), np.int32), 3)
BATCH = {"train": rows(TOKENS, MASK)}
REFS = {"teacher": Frozen(TEACHER, TEACHER_PARAMS)}


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


@pytest.mark.parametrize("shape", [MeshShape(data=8), MeshShape(data=1, fsdp=2, tensor=4)], ids=str)
def test_no_gradient_reaches_a_teacher(shape):
    def value(params):
        return losses.forward_kl(LM, PARAMS, Frozen(TEACHER, params), BATCH["train"])

    with jax.set_mesh(make_mesh(shape)):
        gradient = jax.jit(jax.grad(value))(TEACHER_PARAMS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_teacher_is_matched_by_itself():
    refs = {"teacher": Frozen(LM, PARAMS)}
    value, gradient = jax.value_and_grad(
        lambda p: losses.distillation(LM, p, refs, BATCH, jax.random.key(0))[0]
    )(PARAMS)
    assert abs(float(value)) < 1e-6
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient)) < 1e-6

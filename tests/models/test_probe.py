"""The classifier of documents, against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import minimize

from undo_jax.models.gemma2 import preset
from undo_jax.models.probe import Probe, fit
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.training.train_step import rows
from undo_jax.types import Frozen, Packed

LM = preset("tiny", layers=2, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8)
PARAMS = LM.init(jax.random.key(0))
PROBE = Probe(LM, 1)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 24, (3, 8), np.int32)
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 2, 2, 2], [1] * 8, [0, 1, 2, 3, 4, 5, 6, 7]], np.int32)
ROWS = rows(Packed(TOKENS, None, DOCUMENTS))
STATES = np.asarray(LM.activations(PARAMS, TOKENS[:, :-1], 1), np.float64)


def _means():
    """The mean state of each document, by row and number; the last token of a row is no input."""
    return {
        (row, number): STATES[row][DOCUMENTS[row, :-1] == number].mean(0)
        for row in range(3)
        for number in np.unique(DOCUMENTS[row, :-1])
    }


def test_pooled_are_the_mean_states_of_documents():
    states, is_document = PROBE.pooled(PARAMS, ROWS)
    means = _means()
    assert is_document.sum() == len(means) == 3 + 1 + 7
    actual = np.asarray(states).reshape(3, -1, 16)
    for (row, number), mean in means.items():
        np.testing.assert_allclose(actual[row, number], mean, rtol=1e-5, atol=1e-6)
        assert is_document.reshape(3, -1)[row, number] == 1


def test_without_segments_a_row_is_a_document():
    states, is_document = PROBE.pooled(PARAMS, rows(TOKENS))
    np.testing.assert_allclose(states[is_document > 0], STATES.mean(1), rtol=1e-5, atol=1e-6)


def test_flags_are_of_whole_documents():
    flag = jax.jit(lambda p: PROBE.flags(p, Frozen(LM, PARAMS), ROWS))
    alone = []  # whether a token's own state has its document's verdict
    for bias in np.linspace(-0.5, 0.5, 20, dtype=np.float32):
        direction = RNG.normal(size=16).astype(np.float32)
        actual = np.asarray(flag({"direction": jnp.asarray(direction), "bias": jnp.asarray(bias)}))
        expected = {where: mean @ direction + bias > 0 for where, mean in _means().items()}
        for row, t in np.ndindex(3, 7):
            verdict = expected[row, DOCUMENTS[row, t]]
            assert actual[row, t] == verdict, (row, t)
            alone.append((STATES[row, t] @ direction + bias > 0) == verdict)
    assert 0 < np.mean(alone) < 1


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_fit_is_ridge_logistic_regression(penalty):
    """Of standardised states, with classes of equal weight; what has weight 0 does not count."""
    labels = (np.arange(40) % 4 == 0).astype(float)
    states = RNG.normal(size=(40, 5)) * [1, 2, 3, 0.5, 1] + labels[:, None] + 4
    weights = (np.arange(40) < 36).astype(float)
    states[36:] = 100.0
    actual = fit(*(jnp.asarray(x, jnp.float32) for x in (states, labels, weights)), penalty)
    x, y = states[:36], labels[:36]
    share = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    mean = share @ x
    scale = np.sqrt(share @ (x - mean) ** 2)

    def objective(w):
        z = ((x - mean) / scale) @ w[:-1] + w[-1]
        return share @ (np.logaddexp(0, z) - y * z) + penalty / 2 * w[:-1] @ w[:-1]

    best = minimize(objective, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    direction = best[:-1] / scale
    np.testing.assert_allclose(actual["direction"], direction, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(actual["bias"], best[-1] - mean @ direction, rtol=2e-3, atol=1e-3)


def test_fit_of_separable_classes_is_finite_and_right():
    labels = np.repeat([0.0, 1.0], 20)
    states = RNG.normal(size=(40, 3)) + 30 * labels[:, None]
    actual = fit(*(jnp.asarray(x, jnp.float32) for x in (states, labels, np.ones(40))), 0.01)
    verdicts = states @ np.asarray(actual["direction"]) + float(actual["bias"]) > 0
    assert np.array_equal(verdicts, labels == 1)


def test_fresh_parameters_flag_nothing():
    assert not np.any(PROBE.flags(PROBE.init(jax.random.key(0)), Frozen(LM, PARAMS), ROWS))


def test_sharded_equals_unsharded():
    segments = np.repeat(DOCUMENTS[:1], 8, 0)
    batch = rows(Packed(RNG.integers(0, 24, (8, 8), np.int32), None, segments))
    params = {"direction": jnp.asarray(RNG.normal(size=16), jnp.float32), "bias": jnp.zeros(())}
    flag = jax.jit(lambda lm_params, rows: PROBE.flags(params, Frozen(LM, lm_params), rows))
    pool = jax.jit(PROBE.pooled)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(PARAMS, shardings(PARAMS, LM.rules, mesh))
    with jax.set_mesh(mesh):
        split = jax.device_put(batch, NamedSharding(mesh, P(BATCH)))
        flags, (states, _) = flag(placed, split), pool(placed, split)
    expected = flag(PARAMS, batch)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(flags, expected)
    np.testing.assert_allclose(states, pool(PARAMS, batch)[0], rtol=1e-4, atol=1e-5)

"""`linear` is a product of matrices, with a gradient of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.models.decoder import SAVED
from undo_jax.ops import linear as module
from undo_jax.ops.linear import linear


@pytest.mark.parametrize("way", ["of_matrices", "of_tensors"])
@pytest.mark.parametrize("lead", [(5,), (2, 5), (3, 2, 5)])
def test_values_and_gradients_are_those_of_the_product(lead, way, monkeypatch):
    """To fp32's precision of float64's, as a whole: single sums may cancel."""
    monkeypatch.setattr(module, "of_matrices", getattr(module, way))  # what runs on CPU
    rng = np.random.default_rng(0)
    x, w, gradient = (rng.normal(size=size) for size in ((*lead, 7), (7, 3), (*lead, 3)))
    product, pull = jax.vjp(linear, jnp.float32(x), jnp.float32(w))
    of_x, of_w = pull(jnp.float32(gradient))
    expected = x @ w, gradient @ w.T, x.reshape(-1, 7).T @ gradient.reshape(-1, 3)
    for ours, exact in zip((product, of_x, of_w), expected, strict=True):
        assert np.linalg.norm(ours - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("product", [linear, jnp.matmul])
def test_remat_keeps_it_as_it_keeps_a_plain_product(product):
    """Two are made again where nothing is kept."""
    x, w = jnp.ones((4, 8, 16)), jnp.ones((16, 16))

    def products(remat):
        def loss(x, w):
            return jnp.sum(jnp.sin(product(jnp.sin(product(x, w)), w)))

        step = jax.grad(jax.checkpoint(loss, policy=SAVED[remat]), (0, 1))
        return str(jax.make_jaxpr(step)(x, w)).count("dot_general[")

    assert products("full") == products("dots") + 2

"""`linear` is a product of matrices, with a gradient of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.models.gemma2 import KEPT
from undo_jax.ops import linear as module
from undo_jax.ops.linear import linear


@pytest.mark.parametrize("way", ["of_matrices", "of_tensors"])
@pytest.mark.parametrize("lead", [(5,), (2, 5), (3, 2, 5)])
def test_values_and_gradients_are_those_of_the_product(lead, way, monkeypatch):
    monkeypatch.setattr(module, "of_matrices", getattr(module, way))  # what runs on CPU
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (*lead, 7)), jax.random.normal(keys[1], (7, 3))
    weight = jax.random.normal(keys[2], (*lead, 3))  # so that no two gradients are alike

    def of(product):
        return jax.value_and_grad(lambda x, w: jnp.sum(weight * product(x, w) ** 2), (0, 1))(x, w)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)  # noqa: E731
    jax.tree.map(close, of(linear), of(jnp.matmul))


@pytest.mark.parametrize("product", [linear, jnp.matmul])
def test_remat_keeps_it_as_it_keeps_a_plain_product(product):
    """Two are made again where nothing is kept."""
    x, w = jnp.ones((4, 8, 16)), jnp.ones((16, 16))

    def products(remat):
        def loss(x, w):
            return jnp.sum(jnp.sin(product(jnp.sin(product(x, w)), w)))

        step = jax.grad(jax.checkpoint(loss, policy=KEPT[remat]), (0, 1))
        return str(jax.make_jaxpr(step)(x, w)).count("dot_general[")

    assert products("full") == products("dots") + 2

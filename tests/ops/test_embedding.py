"""What is gathered over devices has the gradient of the plain expression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from undo_jax.ops.embedding import lookup
from undo_jax.runtime.collectives import gather_weight, on_devices
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh

B, T, D, V = 3, 5, 4, 16  # rows and time that few meshes divide
MESHES = pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=8),
        MeshShape(data=1, fsdp=8),
        MeshShape(data=1, tensor=8),
        MeshShape(data=2, fsdp=2, tensor=2),
        MeshShape(data=1, fsdp=2, tensor=4),
    ],
    ids=str,
)


@MESHES
def test_rows_of_the_table_and_their_gradient(shape):
    keys = jax.random.split(jax.random.key(0), 3)
    table = jax.random.normal(keys[0], (V, D))
    tokens = jax.random.randint(keys[1], (B, T), 0, V - 4)  # some in every part, some never
    pull = jax.random.normal(keys[2], (B, T, D))

    def loss(look_up, table):
        actual = look_up(table)
        return jnp.sum(pull * jnp.sin(actual)), actual

    plain = jax.value_and_grad(lambda w: loss(lambda w: w[tokens], w), has_aux=True)(table)
    with jax.set_mesh(make_mesh(shape)):
        run = jax.value_and_grad(
            lambda w: loss(lambda w: lookup(w, tokens, w.dtype), w), has_aux=True
        )
        ours = jax.jit(run)(table)
    np.testing.assert_array_equal(ours[0][1], plain[0][1])
    np.testing.assert_allclose(ours[1], plain[1], rtol=0, atol=1e-6)
    assert np.any(plain[1][: V - 4]) and not np.any(ours[1][V - 4 :])


@MESHES
@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P("tensor", "fsdp")], ids=str)
def test_a_weight_is_gathered_and_its_gradient_is_summed(shape, spec):
    """By each device for its own rows, as a layer does."""
    keys = jax.random.split(jax.random.key(1), 2)
    w, x = jax.random.normal(keys[0], (16, 8)), jax.random.normal(keys[1], (8, 16))

    def plain(w):
        return jnp.sum(jnp.sin(x @ w))

    def of_rows(w, x):
        return jnp.sin(x @ gather_weight(w, w.dtype, spec))

    with jax.set_mesh(make_mesh(shape)):
        held = P(*(axis if axis == "fsdp" else None for axis in spec))
        mapped = on_devices(of_rows, (held, P(BATCH)), P(BATCH), BATCH)
        ours = jax.jit(jax.value_and_grad(lambda w: jnp.sum(mapped(w, x))))(w)
    for a, b in zip(ours, jax.value_and_grad(plain)(w), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)

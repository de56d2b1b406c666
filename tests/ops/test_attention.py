import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.ops.attention import attention, write
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh

B, T, S, N, K, H = 2, 3, 7, 4, 2, 5


def _arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _plain(q, k, v, softcap, first, last):
    """One query at a time, in float64, over the slots it sees and no others."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        seen = slice(first[b, t], last[b, t] + 1)
        scores = np.float64(k[b, seen, n // (N // K)]) @ np.float64(q[b, t, n]) * 0.4
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        weights = np.exp(scores) / np.exp(scores).sum()
        out[b, t, n] = weights @ np.float64(v[b, seen, n // (N // K)])
    return out


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_each_query_sees_its_span_as_in_the_plain_sum(softcap):
    q, k, v = map(np.asarray, _arrays())
    first = np.array([[0, 0, 3], [2, 5, 0]])
    last = np.array([[0, 6, 4], [4, 5, 6]])
    ours = attention(q, k, v, scale=0.4, softcap=softcap, first=first, last=last)
    np.testing.assert_allclose(ours, _plain(q, k, v, softcap, first, last), rtol=0, atol=1e-5)


def test_one_span_serves_every_row():
    q, k, v = _arrays()
    spans = jnp.array([[0, 2, 4]]), jnp.array([[3, 4, 4]])
    whole = [jnp.tile(x, (B, 1)) for x in spans]
    single, many = (
        attention(q, k, v, scale=0.4, softcap=None, first=first, last=last)
        for first, last in (spans, whole)
    )
    np.testing.assert_array_equal(single, many)


def test_rows_are_written_each_at_its_own_slots():
    cache = jnp.arange(math.prod((3, B, S, K, H)), dtype=jnp.float32).reshape(3, B, S, K, H)
    new = -jnp.arange(1.0, 1 + math.prod((B, T, K, H))).reshape(B, T, K, H)
    expected = np.array(cache)
    expected[1, 0, 4:7], expected[1, 1, 0:3] = new
    ours = jax.jit(write)(cache, new, jnp.int32(1), jnp.array([4, 0]))
    np.testing.assert_array_equal(ours, expected)


def test_devices_write_their_own_rows_without_a_word_to_each_other():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    place = lambda *spec: NamedSharding(mesh, P(*spec))  # noqa: E731
    cache = jax.device_put(jnp.zeros((3, 8, S, K, H)), place(None, BATCH, None, "tensor"))
    new = jax.device_put(jnp.ones((8, T, K, H)), place(BATCH, None, "tensor"))
    start = jax.device_put(jnp.arange(8) % 4, place(BATCH))
    with jax.set_mesh(mesh):
        program = jax.jit(write, donate_argnums=0).lower(cache, new, jnp.int32(1), start).compile()
    text = program.as_text()
    assert not [
        word for word in ("all-gather", "all-reduce", "permute", "all-to-all") if word in text
    ]

"""The splash kernels, interpreted on a CPU, against the plain attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from undo_jax.models.gemma2 import preset
from undo_jax.ops import attention_tpu
from undo_jax.ops.attention import attention
from undo_jax.runtime.mesh import MeshShape, make_mesh

B, T, N, K, H, WINDOW = 2, 256, 4, 2, 128, 100


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(attention_tpu, "INTERPRET", True)


def _case(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, out = (
        jax.random.normal(key, (B, T, heads, H)).astype(dtype)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    return (4 * q, k, v), out  # scores beyond the soft-cap


def _plain(softcap, local, opened, q, k, v):
    last = jnp.arange(T)[None]
    first = jnp.maximum(last - WINDOW + 1, opened) if local else opened
    first = jnp.broadcast_to(first, (B, T))
    return attention(q, k, v, scale=0.25, softcap=softcap, first=first, last=last)


def _ours(softcap, local, opened, q, k, v):
    return attention_tpu.attention(
        q, k, v, scale=0.25, softcap=softcap, window=WINDOW, local=jnp.bool(local),
        documents=opened,
    )  # fmt: skip


def _opened(documents):
    """Where each token's document begins: at 0, 60 and 190."""
    starts = jnp.array([0, 60, 190] if documents else [0])
    return jnp.max(jnp.where(starts <= jnp.arange(T)[:, None], starts, 0), axis=1)[None]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_values_and_gradients_are_those_of_plain_attention(softcap, local, documents):
    arguments, weights = _case()
    opened = _opened(documents)

    def loss(f, opened):
        return lambda *x: jnp.sum(weights * f(softcap, local, opened, *x))

    plain = jax.jit(jax.value_and_grad(loss(_plain, opened), argnums=(0, 1, 2)))(*arguments)
    ours = jax.jit(
        jax.value_and_grad(loss(_ours, opened if documents else None), argnums=(0, 1, 2))
    )(*arguments)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "window"), [(64, WINDOW), (96, None)])
def test_narrow_heads_and_layers_that_are_all_alike(width, window):
    """Heads are filled up with zeros; every layer slides, or none does."""
    arguments, weights = _case()
    arguments, weights = [x[..., :width] for x in arguments], weights[..., :width]

    def ours(*x):
        more = {"window": window, "local": None, "documents": None}
        return attention_tpu.attention(*x, scale=0.25, softcap=None, **more)

    def plain(*x):
        return _plain(None, window is not None, _opened(False), *x)

    def gradient(f):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(weights * f(*x)), argnums=(0, 1, 2)))

    actual, expected = gradient(ours)(*arguments), gradient(plain)(*arguments)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("tensor", [2, 4])  # as many as key/value heads, and twice as many
def test_heads_are_split_over_tensor(tensor):
    arguments, weights = _case()

    def loss(f, *x):
        out = f(3.0, True, _opened(True), *x)
        return jnp.sum(weights * out), out

    def gradient(f):
        return jax.jit(jax.value_and_grad(partial(loss, f), argnums=(0, 1, 2), has_aux=True))

    (_, plain), plain_gradients = gradient(_plain)(*arguments)
    mesh = make_mesh(MeshShape(data=1, fsdp=8 // tensor, tensor=tensor))
    with jax.set_mesh(mesh):
        (_, ours), gradients = gradient(_ours)(*arguments)
    assert ours.sharding.spec == P(None, None, "tensor")
    np.testing.assert_allclose(ours, plain, atol=2e-5)
    for a, b in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("document_start", [None, 0])
def test_a_model_is_the_same_with_it(monkeypatch, document_start):
    """Windows in every other layer, documents and the scale arrive."""
    lm = preset("tiny", heads=2, kv_heads=1, head_width=128, window=40, dtype="bfloat16",
           document_start=document_start, attention_scale=0.5)  # fmt: skip
    params = jax.jit(lm.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, lm.vocabulary)
    plain = np.asarray(jax.jit(lm.hidden)(params, tokens), np.float32)
    used = []
    monkeypatch.setattr(attention_tpu, "available", lambda *_: used.append(True) or True)
    ours = np.asarray(jax.jit(lambda *x: lm.hidden(*x))(params, tokens), np.float32)
    assert used
    assert np.linalg.norm(ours - plain) < 0.02 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"time": 200}, False), ({"width": 32}, False), ({"dtype": jnp.float32}, False),
     ({"kv_heads": 1}, True), ({"heads": 3, "kv_heads": 1}, False),
     ({"heads": 5, "kv_heads": 5}, False), ({"width": 64}, True), ({"width": 96}, True),
     ({"heads": 6, "kv_heads": 3}, False)],
)  # fmt: skip
def test_it_runs_where_the_kernels_divide_the_sizes(monkeypatch, change, fits):
    monkeypatch.setattr(pltpu, "is_tpu_device", lambda: True)
    sizes = {"time": T, "width": H, "heads": N, "kv_heads": K, "dtype": jnp.bfloat16} | change
    q = jnp.zeros((B, sizes["time"], sizes["heads"], sizes["width"]), sizes["dtype"])
    k = jnp.zeros((B, sizes["time"], sizes["kv_heads"], sizes["width"]), sizes["dtype"])
    with jax.set_mesh(make_mesh(MeshShape(data=4, tensor=2))):
        assert attention_tpu.available(q, k) == fits
    monkeypatch.setattr(pltpu, "is_tpu_device", lambda: False)
    assert not attention_tpu.available(q, k)

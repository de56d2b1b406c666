"""The Triton kernels, interpreted on a CPU, against the plain attention."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from undo_jax.models.gemma2 import preset
from undo_jax.ops import attention_gpu, gpu
from undo_jax.ops.attention import attention
from undo_jax.ops.attention_gpu import Tile
from undo_jax.runtime.mesh import MeshShape, make_mesh

B, T, N, K, H, WINDOW = 2, 100, 4, 2, 32, 40
GPU = gpu.GPUS["NVIDIA H100"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """With tiles that do not divide T, wider than high and higher than wide."""
    tiles = Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(16, 32, 4, 1)
    monkeypatch.setattr(attention_gpu, "TILES", {H: tiles})
    monkeypatch.setattr(gpu, "INTERPRET", True)


def _case(dtype=jnp.float32, time=T, size=4.0):
    """Scores beyond a soft-cap of 3."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, out = (
        jax.random.normal(key, (B, time, heads, H)).astype(dtype)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    return (size * q, k, v), out


def _first(documents=True, local=True, time=T):
    """Of the first row, documents begin at 0, 30 and 75; of the second at 0 and 47."""
    slots = jnp.arange(time)
    rows = ([0, 30, 75], [0, 47, 47]) if documents else ([0],)
    starts = jnp.array(rows)[:, :, None]
    opened = jnp.max(jnp.where(starts <= slots, starts, 0), axis=1)
    return jnp.maximum(opened, slots - WINDOW + 1) if local else opened


def _plain(softcap, first, q, k, v):
    first = jnp.broadcast_to(first, q.shape[:2])
    last = jnp.arange(q.shape[1])[None]
    return attention(q, k, v, scale=0.25, softcap=softcap, first=first, last=last)


def _ours(softcap, first, q, k, v):
    return attention_gpu.attention(q, k, v, scale=0.25, softcap=softcap, first=first)


def _gradients(f, softcap, first, arguments, weights):
    """The output, and the gradients of q, k and v."""

    def loss(*x):
        out = f(softcap, first, *x)
        return jnp.sum((weights * out).astype(jnp.float32)), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(*arguments)
    return out, *gradients


def _same(ours, plain, within=2e-5):
    for a, b in zip(ours, plain, strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=within * np.max(np.abs(b)))


@pytest.mark.parametrize(
    ("softcap", "documents", "local"),
    [(None, False, False), (3.0, False, True), (3.0, True, False), (None, True, True)],
)
def test_values_and_gradients_are_those_of_plain_attention(softcap, documents, local):
    case = softcap, _first(documents, local), *_case()
    _same(_gradients(_ours, *case), _gradients(_plain, *case))


@pytest.mark.parametrize("time", [7, 64])  # less than a block, and whole blocks
def test_any_length_will_do(time):
    case = 3.0, _first(time=time), *_case(time=time)
    _same(_gradients(_ours, *case), _gradients(_plain, *case))


@pytest.mark.slow
def test_heads_between_two_sizes_are_filled_up(monkeypatch):
    monkeypatch.setattr(attention_gpu, "PADDED", {20: H})
    arguments, weights = _case()
    case = None, _first(), [x[..., :20] for x in arguments], weights[..., :20]
    _same(_gradients(_ours, *case), _gradients(_plain, *case))


@pytest.mark.parametrize("softcap", [None, 50.0])
def test_logits_may_be_of_any_size(softcap):
    case = softcap, _first(), *_case(size=1e4)  # to 1e5
    ours = _gradients(_ours, *case)
    assert all(np.isfinite(x).all() for x in ours)
    _same(ours, _gradients(_plain, *case), 5e-3)


def test_in_bf16_it_is_close():
    arguments, weights = _case(jnp.bfloat16)
    exact, weights32 = [x.astype(jnp.float32) for x in arguments], weights.astype(jnp.float32)
    plain = _gradients(_plain, 3.0, _first(), exact, weights32)
    for a, b in zip(_gradients(_ours, 3.0, _first(), arguments, weights), plain, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(a.astype(jnp.float32) - b) < 0.01 * np.linalg.norm(b)


@pytest.mark.parametrize("tensor", [2, 4])  # as many as key/value heads, and twice as many
def test_heads_are_split_over_tensor(tensor):
    case = 3.0, _first(), *_case()
    plain = _gradients(_plain, *case)
    with jax.set_mesh(make_mesh(MeshShape(data=1, fsdp=8 // tensor, tensor=tensor))):
        ours = _gradients(_ours, *case)
    assert ours[0].sharding.spec == P(None, None, "tensor")
    _same(ours, plain)


def test_it_says_its_flops(monkeypatch):
    """2, 3 and 4 products of half of T × T."""
    message = []
    monkeypatch.setattr(gpu, "counted", lambda flops: message.append(flops) or nullcontext())
    _gradients(_ours, None, _first(), *_case())
    assert message == [products * B * N * T * T * H for products in (2, 3, 4)]


def _model(**changes):
    lm = preset("small", heads=2, kv_heads=1, window=20, dtype="bfloat16", **changes)
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, lm.vocabulary)
    return lm, jax.jit(lm.init)(jax.random.key(0)), tokens


@pytest.mark.parametrize("document_start", [None, 0])
def test_a_model_is_the_same_with_it(monkeypatch, document_start):
    """Windows in every other layer, documents and the scale arrive."""
    lm, params, tokens = _model(document_start=document_start, attention_scale=0.5, vocabulary=24)
    plain = np.asarray(jax.jit(lm.hidden)(params, tokens), np.float32)
    used = []
    monkeypatch.setattr(attention_gpu, "available", lambda *_: used.append(True) or True)
    ours = np.asarray(jax.jit(lambda *x: lm.hidden(*x))(params, tokens), np.float32)
    assert used
    assert np.linalg.norm(ours - plain) < 0.02 * np.linalg.norm(plain)


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("dots", 1), ("full", 2)])
def test_how_often_its_output_is_made(monkeypatch, remat, times):
    """Again for the backward pass under full remat only."""
    lm, params, tokens = _model(remat=remat)
    monkeypatch.setattr(attention_gpu, "available", lambda *_: True)
    loss = lambda params: jnp.sum(lm.hidden(params, tokens).astype(jnp.float32))  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert program.count("name=attention_output_kernel") == times
    assert program.count("name=attention_query_kernel") == 1


def test_with_a_cache_it_is_not_used(monkeypatch):
    """There keys have other slots than queries."""
    lm, params, tokens = _model()
    monkeypatch.setattr(attention_gpu, "available", lambda *_: True)
    monkeypatch.setattr(attention_gpu, "attention", None)
    read = jax.eval_shape(lm.extend, params, lm.empty_cache(B, T), tokens, jnp.zeros(B, jnp.int32))
    assert read[0].shape == (*tokens.shape, lm.width)


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"time": 77}, True), ({"width": 128}, False), ({"dtype": jnp.float32}, False),
     ({"kv_heads": 1}, True), ({"heads": 3, "kv_heads": 1}, False),
     ({"heads": 6, "kv_heads": 3}, False)],
)  # fmt: skip
def test_it_runs_where_the_kernels_fit_the_sizes(monkeypatch, change, fits):
    monkeypatch.setattr(gpu, "supported_gpu", lambda: GPU)
    sizes = {"time": T, "width": H, "heads": N, "kv_heads": K, "dtype": jnp.bfloat16} | change
    q = jnp.zeros((B, sizes["time"], sizes["heads"], sizes["width"]), sizes["dtype"])
    k = jnp.zeros((B, sizes["time"], sizes["kv_heads"], sizes["width"]), sizes["dtype"])
    with jax.set_mesh(make_mesh(MeshShape(data=4, tensor=2))):
        assert attention_gpu.available(q, k) == fits
    monkeypatch.setattr(gpu, "supported_gpu", lambda: None)
    assert not attention_gpu.available(q, k)

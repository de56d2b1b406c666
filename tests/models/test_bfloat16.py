"""Arithmetic in bf16 outside the kernels: where it is fp32 inside, only its result is rounded.

What is expected is NumPy's, in float64, of the same bf16 numbers. Operations run one by one: XLA
for CPU keeps more digits inside a program than a TPU would.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from undo_jax.models.gemma2 import preset
from undo_jax.models.layer import Norm
from undo_jax.models.rope import frequencies, rope
from undo_jax.ops.attention import attention

HALF = 2.0**-8  # of a number: the most that rounding to bf16 moves it


def _numbers(seed, shape, scale=1.0):
    """bf16 numbers, and the same in float64."""
    drawn = scale * np.random.default_rng(seed).standard_normal(shape)
    rounded = jnp.asarray(drawn, jnp.bfloat16)
    return rounded, np.asarray(rounded, np.float64)


def _rounded_once(ours, exact, slack):
    """Whether it is `exact` rounded to bf16, the numbers before that off by `slack` at most."""
    assert ours.dtype == jnp.bfloat16
    error = np.abs(np.asarray(ours, np.float64) - exact)
    np.testing.assert_array_less(error, HALF * np.abs(exact) + slack)


@pytest.mark.parametrize(("first", "slack"), [(0, 1e-4), (8000, 1e-2)])
def test_rotary_positions_are_fp32(first, slack):
    """Angles of positions up to 8064: fp32 has them to a thousandth, bf16 not to a whole turn."""
    x, exact = _numbers(0, (1, 64, 2, 32))
    positions = first + np.arange(64)
    frequency = 10_000.0 ** (-np.arange(16) / 16)
    turn = np.exp(1j * positions[:, None] * frequency)[None, :, None]
    turned = (exact[..., :16] + 1j * exact[..., 16:]) * turn
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    ours = rope(x, jnp.asarray(positions)[None], frequencies(10_000.0, 16))
    _rounded_once(ours, expected, slack)


def test_a_norm_is_fp32():
    """Squares of 4096 numbers summed in bf16 would stop growing."""
    x, exact = _numbers(1, (2, 3, 4096), scale=3.0)
    norm = Norm(preset("tiny"), 4096)
    _, scale = _numbers(2, 4096, scale=0.3)
    norm.norm = nnx.Param(jnp.asarray(scale, jnp.float32))
    mean = np.mean(exact**2, axis=-1, keepdims=True)
    _rounded_once(norm(x), exact / np.sqrt(mean + 1e-6) * (1 + scale), 1e-5)


@pytest.mark.parametrize("softcap", [None, 50.0])
def test_scores_and_softmax_of_attention_are_fp32(softcap):
    """Scores reach 60, where bf16 has steps of a quarter: weights would be off by a tenth.

    The weights are rounded before values are summed, which adds half a step of each.
    """
    time, keys, heads, kv_heads, width = 5, 48, 4, 2, 64
    q, exact_q = _numbers(3, (2, time, heads, width), scale=2.0)
    k, exact_k = _numbers(4, (2, keys, kv_heads, width), scale=2.0)
    v, exact_v = _numbers(5, (2, keys, kv_heads, width))
    first, last = np.array([[0, 1, 2, 3, 4]]), np.array([[20, 30, 40, 44, 47]])
    scale = width**-0.5
    exact_k, exact_v = (np.repeat(x, heads // kv_heads, axis=2) for x in (exact_k, exact_v))
    scores = np.einsum("btnh,bsnh->bnts", exact_q, exact_k) * scale
    assert 10 < np.max(np.abs(scores)) < 60
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    slots = np.arange(keys)
    seen = (first[..., None] <= slots) & (slots <= last[..., None])
    weights = np.where(seen[:, None], np.exp(scores), 0.0)
    weights /= np.sum(weights, axis=-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, exact_v)
    of_weights = np.einsum("bnts,bsnh->btnh", HALF * weights, np.abs(exact_v))
    spans = {"first": jnp.asarray(first), "last": jnp.asarray(last)}
    ours = attention(q, k, v, scale=scale, softcap=softcap, **spans)
    _rounded_once(ours, expected, of_weights + 1e-4)

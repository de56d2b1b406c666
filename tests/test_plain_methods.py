"""MaxEnt, NPO, SAM and RepNoise against plain ones, in float64 by whole logits and autodiff.

Values and gradients in fp32 are held to 1e-5.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import decoder, norm

from undo_jax.methods.graddiff import graddiff
from undo_jax.methods.maxent import maxent
from undo_jax.methods.npo import npo
from undo_jax.methods.repnoise import repnoise
from undo_jax.methods.rmu import rmu
from undo_jax.methods.sam import sam
from undo_jax.methods.simnpo import simnpo
from undo_jax.methods.undial import undial
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.sharding import path_name
from undo_jax.training.train_step import rows
from undo_jax.types import Frozen

LM = preset("2B", layers=3, width=16, feed_forward=32, heads=4, kv_heads=2, head_width=8,
            attention_scale=8**-0.5, vocabulary=24, init_stddev=0.25, window=4,
            final_softcap=5.0, dtype="float32")  # fmt: skip
BASE = jax.jit(LM.init)(jax.random.key(1))
PARAMS = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(w.size), w.shape), BASE)
KEY = jax.random.key(7)


def _rows(seed, low, high):
    rng = np.random.default_rng(seed)
    mask = (rng.random((6, 8)) > 0.2).astype(np.float32)
    return rows(rng.integers(low, high, (6, 9), np.int32), mask)


BATCH = {"retain": _rows(0, 0, 15), "forget": _rows(1, 9, 24)}


def _log_p(params, hidden, softcap=None):
    z = hidden @ params["embedding"].T
    return jax.nn.log_softmax(z if softcap is None else softcap * jnp.tanh(z / softcap))


def _of_targets(log_p, part):
    return jnp.take_along_axis(log_p, part.targets[..., None], -1)[..., 0]


def _ce(params, part):
    hidden = decoder(LM, params, part.inputs)[0]
    return -jnp.sum(part.weights * _of_targets(_log_p(params, hidden, LM.final_softcap), part))


def plain_maxent(params, base, batch, noise):
    """Mean of KL(uniform ‖ p) over tokens of forget, and cross entropy on retain."""
    log_p = _log_p(params, decoder(LM, params, batch["forget"].inputs)[0], LM.final_softcap)
    kl = -jnp.log(LM.vocabulary) - jnp.mean(log_p, -1)
    return jnp.sum(batch["forget"].weights * kl) + _ce(params, batch["retain"])


def plain_npo(params, base, batch, noise, beta=0.1):
    """Row by row: a row is a sequence, whose weight is that of its tokens."""
    part, total = batch["forget"], 0.0
    own, of_base = (
        _of_targets(_log_p(p, decoder(LM, p, part.inputs)[0], LM.final_softcap), part)
        for p in (params, base)
    )
    for row in range(len(part.inputs)):
        counts = part.weights[row] > 0
        ratio = jnp.exp(jnp.sum(jnp.where(counts, own[row] - of_base[row], 0)))
        total += jnp.sum(part.weights[row]) * 2 / beta * jnp.log(1 + ratio**beta)
    return total + _ce(params, batch["retain"])


def plain_sam(params, base, batch, noise, rho=0.05):
    """MaxEnt where it is worst within ρ, to first order; its gradient is taken there."""
    gradient = jax.grad(plain_maxent)(params, base, batch, noise)
    length = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
    step = jax.tree.map(lambda g: jax.lax.stop_gradient(rho * g / length), gradient)
    return plain_maxent(jax.tree.map(jnp.add, params, step), base, batch, noise)


def _mmd(x, z):
    """The biased MMD by five kernels around the mean distance."""
    found, n = jnp.concatenate([x, z]), len(x)
    distance = jnp.sum((found[:, None] - found) ** 2, -1)
    scale = jax.lax.stop_gradient(jnp.sum(distance)) / (4 * n * n - 2 * n) / 4
    kernel = sum(jnp.exp(-distance / (scale * 2**power)) for power in range(5))
    return jnp.mean(kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n])


def plain_repnoise(params, base, batch, noise, beta=2.0, ascent=0.5):
    """MaxEnt + CE(retain) + β · MMD of MLP outputs and noise − a · log(1 + CE over depth)."""
    part = batch["forget"]
    hidden, states, made = decoder(LM, params, part.inputs)
    here = (part.weights > 0)[..., None]
    flat = lambda x: jnp.where(here, x, 0).reshape(len(x), -1)  # noqa: E731
    mmd = sum(_mmd(flat(x), flat(z)) for x, z in zip(made, noise, strict=True)) / LM.layers
    read = [_log_p(params, norm(LM, x, params["final"])) for x in states[:-1]]
    read.append(_log_p(params, hidden, LM.final_softcap))
    harm = sum(-jnp.sum(part.weights * _of_targets(log_p, part)) for log_p in read) / len(read)
    own = plain_maxent(params, base, batch, noise) + _ce(params, batch["retain"])
    return own + beta * mmd - ascent * jnp.log(1 + harm)


CASES = {
    "maxent": (maxent, plain_maxent),
    "npo": (npo, plain_npo),
    "sam": (partial(sam, method=maxent, rho=0.05), plain_sam),
    "repnoise": (
        partial(repnoise, method=maxent, noise_weight=2.0, ascent_weight=0.5), plain_repnoise
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["maxent", *(pytest.param(n, marks=pytest.mark.slow) for n in ("npo", "sam", "repnoise"))],
)
def test_value_and_gradient_are_those_of_the_plain_one_in_float64(name):
    method, plain = CASES[name]
    refs = {"base": Frozen(LM, BASE)}
    ours = jax.jit(jax.value_and_grad(lambda p: method(LM, p, refs, BATCH, KEY)[0]))(PARAMS)
    keys, shape = jax.random.split(KEY, LM.layers), (*BATCH["forget"].inputs.shape, LM.width)
    noise = [jax.random.normal(key, shape) for key in keys]
    given = jax.tree.map(np.asarray, (PARAMS, BASE, BATCH, noise))
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64 if x.dtype == np.float32 else None), given
        )
        value, gradient = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(plain))(*wide))
    assert value.dtype == np.float64
    np.testing.assert_allclose(ours[0], value, rtol=1e-5)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(ours[1]), jax.tree.leaves(gradient), strict=True
    ):
        away = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert away < 1e-5, (path_name(path), away)


@pytest.mark.parametrize(
    ("method", "constant", "said"),
    [
        (npo, {"beta": 0.0}, "^beta=0.0: it must be above 0$"),
        (simnpo, {"beta": -1}, "^beta=-1: it must be above 0$"),
        (partial(sam, method=maxent), {"rho": -1.0}, "^rho=-1.0: it must be at least 0$"),
        (undial, {"beta": -1.0}, "^beta=-1.0: it must be at least 0$"),
        (simnpo, {"forget_weight": -1.0}, "^forget_weight=-1.0: it must be at least 0$"),
        *(
            (method, {"retain_weight": -1.0}, "^retain_weight=-1.0: it must be at least 0$")
            for method in (graddiff, maxent, npo, partial(rmu, read_layer=1), simnpo, undial)
        ),
    ],
)
def test_a_constant_that_is_not_positive_is_refused(method, constant, said):
    with pytest.raises(ValueError, match=said):
        method(None, {}, {}, {}, None, **constant)

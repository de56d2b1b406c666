"""Representation noising beside another method (paper's baseline; Rosati et al., 2405.14577)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from undo_jax.losses import Scalar, cross_entropy
from undo_jax.ops import head
from undo_jax.types import LM, Batch, Key, Loss, Metrics, Params, Refs, Taps, used, whole_batch


@whole_batch  # it compares rows
def repnoise(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    method: Loss,  # reference: maxent, whose own retain term counts as well
    noise_weight: float = 0.001,  # β; reference: .001, in its grid 1e-4 to 4, WMDP 1
    ascent_weight: float = 1.0,  # a; reference: 1, in its grid .1 to 4
) -> tuple[Scalar, Metrics]:
    """L = method + CE(retain) + β · N − a · log(1 + H).

    N: the MMD between rows' MLP outputs on forget, [T·D], and N(0, 1), averaged over layers; with
    few rows of many tokens its diagonal dominates. H: the mean of the CE on forget and of the CE of
    each earlier residual state, read by the last norm and the table without soft-cap. Unlike in the
    reference, tokens of weight 0 are left out, not those whose id retain's unrelated rows have at
    the same position; H is over its L + 1 terms, there over L; the last state is normed once.
    Raises ValueError for one row: its MMD is constant.
    """
    forget = batch["forget"]
    if len(forget.inputs) < 2:
        raise ValueError("repnoise compares rows of a batch: give batch_size 8, at least 2")
    value, metrics = method(lm, params, refs, batch, key)
    layers, table, size = range(lm.layers), lm.table(params), used(lm)
    hidden, (states, mlp_outputs) = lm.tapped(params, forget.inputs, Taps(layers, layers))
    mmd = jax.checkpoint(lambda x: _mmd(x[0], x[1], forget.weights > 0))  # noise is not stored
    noise = jnp.mean(lax.map(mmd, (mlp_outputs, jax.random.split(key, lm.layers))))
    last = head.cross_entropy(hidden, table, forget.targets, forget.weights, lm.softcap, used=size)
    read = jnp.concatenate(list(lm.final(params, states)), 1)  # concatenated along time
    targets, weights = (jnp.tile(x, (1, lm.layers)) for x in (forget.targets, forget.weights))
    harm = (last + head.cross_entropy(read, table, targets, weights, used=size)) / (lm.layers + 1)
    retain = cross_entropy(lm, params, batch["retain"])
    more = {"repnoise_mmd": noise, "repnoise_forget_ce": harm, "repnoise_retain_ce": retain}
    return value + retain + noise_weight * noise - ascent_weight * jnp.log1p(harm), metrics | more


def _mmd(x: Float[Array, "B T D"], key: Key, is_counted: Bool[Array, "B T"]) -> Scalar:
    """Biased MMD from as many fresh rows of N(0, 1); five RBF kernels around the mean distance."""
    z, n = jax.random.normal(key, x.shape), 2 * len(x)
    is_counted = jnp.tile(is_counted, (2, 1))[..., None]
    rows = jnp.where(is_counted, jnp.concatenate([x, z]), 0).reshape(n, -1)
    squares, products = jnp.sum(rows**2, -1), jnp.matmul(rows, rows.T, precision="highest")
    d = jnp.maximum(squares[:, None] + squares - 2 * products, 0) * (1 - jnp.eye(n))
    scale = lax.stop_gradient(jnp.sum(d)) / (n * n - n) / 4
    sign = jnp.repeat(jnp.array([1.0, -1.0]), len(x))
    return sign @ sum(jnp.exp(-d / (scale * 2**j)) for j in range(5)) @ sign / len(x) ** 2

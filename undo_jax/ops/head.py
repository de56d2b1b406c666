"""Losses on hidden states: the [B, T, V] logits of a batch never exist.

Each loss is Σ_bt weights[b, t] · l(z[b, t]) with soft-capped logits z. The time axis is scanned in
chunks; while a chunk's logits are live, its gradients are made as well (∂l/∂z is closed-form for
all three losses), so the backward pass only scales what the forward pass stored: one pass over the
vocabulary, no recomputation. `reference_*` say the same in the plainest way, for the tests.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float, Int

LOGITS_PER_CHUNK = 2**28  # elements of a chunk's logits on one device: 1 GiB in fp32

Hidden = Float[Array, "B T D"]
Table = Float[Array, "V D"]
Weights = Float[Array, "B T"]
Scalar = Float[Array, ""]


def logits(hidden: Hidden, table: Table, softcap: float | None) -> Float[Array, "B T V"]:
    """Soft-capped logits in fp32."""
    z = jnp.einsum("btd,vd->btv", hidden, table.astype(hidden.dtype)).astype(jnp.float32)
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def cross_entropy(
    hidden: Hidden,
    table: Table,
    targets: Int[Array, "B T"],
    weights: Weights,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Σ w · −log p(target)."""
    return _weighted_sum(
        _cross_entropy, (softcap, None), chunk, hidden, table, targets, (), weights
    )


def kl_to_teacher(
    hidden: Hidden,
    table: Table,
    teacher_hidden: Float[Array, "B T D2"],
    teacher_table: Float[Array, "V D2"],
    weights: Weights,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Σ w · KL(p_teacher ‖ p_student) at temperature 1; no gradient reaches the teacher."""
    caps = (softcap, teacher_softcap)
    return _weighted_sum(
        _kl_to_teacher, caps, chunk, hidden, table, teacher_hidden, teacher_table, weights
    )


def kl_to_uniform(
    hidden: Hidden,
    table: Table,
    weights: Weights,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Σ w · KL(uniform ‖ p) = Σ w · (logsumexp z − mean z − log V)."""
    return _weighted_sum(_kl_to_uniform, (softcap, None), chunk, hidden, table, (), (), weights)


def greedy(
    hidden: Hidden, table: Table, softcap: float | None = None, chunk: int | None = None
) -> Int[Array, "B T"]:
    """The most likely next token at each position."""
    size = chunk or _chunk_size(hidden, table)
    picks = lax.map(lambda h: jnp.argmax(logits(h, table, softcap), axis=-1), _split(hidden, size))
    return _join(picks, hidden.shape[1])


# ---------------------------------------------------------------------------- plain references


def reference_cross_entropy(hidden, table, targets, weights, softcap=None) -> Scalar:
    log_p = jax.nn.log_softmax(logits(hidden, table, softcap))
    return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])


def reference_kl_to_teacher(
    hidden, table, teacher_hidden, teacher_table, weights, softcap=None, teacher_softcap=None
) -> Scalar:
    teacher = lax.stop_gradient(logits(teacher_hidden, teacher_table, teacher_softcap))
    log_p, log_t = jax.nn.log_softmax(logits(hidden, table, softcap)), jax.nn.log_softmax(teacher)
    return jnp.sum(weights * jnp.sum(jnp.exp(log_t) * (log_t - log_p), -1))


def reference_kl_to_uniform(hidden, table, weights, softcap=None) -> Scalar:
    log_p = jax.nn.log_softmax(logits(hidden, table, softcap))
    vocabulary = log_p.shape[-1]
    return jnp.sum(weights * jnp.sum((-jnp.log(vocabulary) - log_p) / vocabulary, -1))


# ------------------------------------------- per chunk: z -> (loss per token, its gradient in z)


def _cross_entropy(z, targets, _table, _softcap):
    log_p = jax.nn.log_softmax(z)
    loss = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return loss, jnp.exp(log_p) - jax.nn.one_hot(targets, z.shape[-1], dtype=z.dtype)


def _kl_to_teacher(z, teacher_hidden, teacher_table, teacher_softcap):
    log_p = jax.nn.log_softmax(z)
    log_t = jax.nn.log_softmax(logits(teacher_hidden, teacher_table, teacher_softcap))
    t = jnp.exp(log_t)
    return jnp.sum(t * (log_t - log_p), -1), jnp.exp(log_p) - t


def _kl_to_uniform(z, _nothing, _table, _softcap):
    normaliser = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    loss = normaliser[..., 0] - jnp.mean(z, -1) - jnp.log(z.shape[-1])
    return loss, jnp.exp(z - normaliser) - 1 / z.shape[-1]


# ------------------------------------------------------------------------------- the one machine


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted_sum(
    loss: Callable,
    softcaps: tuple[float | None, float | None],  # (student's, teacher's)
    chunk: int | None,
    hidden: Hidden,
    table: Table,
    per_token: Any,  # what else the loss needs at each token: a pytree of [B, T, ...]
    teacher_table: Any,
    weights: Weights,
) -> Scalar:
    def of_chunk(total, piece):
        h, aux, w = piece
        value, _ = loss(logits(h, table, softcaps[0]), aux, teacher_table, softcaps[1])
        return total + jnp.sum(w * value), None

    pieces = _split((hidden, per_token, weights), chunk or _chunk_size(hidden, table))
    return lax.scan(of_chunk, jnp.zeros(()), pieces)[0]


def _forward(loss, softcaps, chunk, hidden, table, per_token, teacher_table, weights):
    compute_table = table.astype(hidden.dtype)

    def of_chunk(carry, piece):
        total, d_table = carry
        h, aux, w = piece
        z = logits(h, table, softcaps[0])
        value, dz = loss(z, aux, teacher_table, softcaps[1])
        dz = dz * w[..., None]
        if softcaps[0] is not None:
            dz = dz * (1 - jnp.square(z / softcaps[0]))
        dz = dz.astype(h.dtype)
        d_hidden = jnp.einsum("btv,vd->btd", dz, compute_table)
        d_table += jnp.einsum("btv,btd->vd", dz, h, preferred_element_type=jnp.float32)
        return (total + jnp.sum(w * value), d_table), d_hidden

    pieces = _split((hidden, per_token, weights), chunk or _chunk_size(hidden, table))
    start = (jnp.zeros(()), jnp.zeros(table.shape, jnp.float32))
    (total, d_table), d_hidden = lax.scan(of_chunk, start, pieces)
    return total, (_join(d_hidden, hidden.shape[1]), d_table.astype(table.dtype))


def _backward(loss, softcaps, chunk, gradients, cotangent):
    d_hidden, d_table = jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), gradients)
    return d_hidden, d_table, None, None, None  # None: targets, teacher and weights are constants


_weighted_sum.defvjp(_forward, _backward)


def _chunk_size(hidden: Hidden, table: Table) -> int:
    """Time positions per chunk such that a device's logits stay within LOGITS_PER_CHUNK."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    devices = math.prod(size for size, kind in axes if kind != AxisType.Manual)
    return max(1, LOGITS_PER_CHUNK * devices // (hidden.shape[0] * table.shape[0]))


def _split(tree: Any, size: int) -> Any:
    """[B, T, ...] -> [chunks, B, size, ...]; what is missing in the last chunk is zero."""

    def split(x):
        width = min(size, x.shape[1])
        count = -(-x.shape[1] // width)
        padding = [(0, 0), (0, count * width - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(x.shape[0], count, width, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(split, tree)


def _join(x: Any, time: int) -> Any:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]

"""Losses on hidden states: the [B, T, V] logits of a batch never exist.

Each loss is Σ_bt weights[b, t] · l(z[b, t]) with soft-capped logits z. The time axis is scanned in
chunks; while a chunk's logits are live, its gradients are made as well (∂l/∂z is closed-form for
all three losses), so the backward pass only scales what the forward pass stored: one pass over the
vocabulary, no recomputation. The gradient in a token's weight is that token's loss. `reference_*`
say the same in the plainest way, for the tests.

On a mesh every device does so for its rows and its part of the vocabulary. The table is gathered
over `fsdp` once, its gradient summed in fp32 on each device and reduced once, after the last chunk.
`head_tpu` or `head_gpu` does a device's part where it is `chosen`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.ops import head_gpu, head_tile, head_tpu
from undo_jax.sharding import (
    BATCH,
    first_of,
    gather,
    on_devices,
    pad_rows,
    parts,
    scatter,
    several,
)

LOGITS_PER_CHUNK = 2**28  # elements of a chunk's logits on one device: 1 GiB in fp32

TABLE = P(("tensor", "fsdp"))
INPUTS = P(BATCH), TABLE, P(BATCH), TABLE, P(BATCH)  # hidden, table, per_token, teacher's, weights

Hidden = Float[Array, "B T D"]
Table = Float[Array, "V D"]
Weights = Float[Array, "B T"]
Scalar = Float[Array, ""]


def logits(hidden: Hidden, table: Table, softcap: float | None) -> Float[Array, "B T V"]:
    """Soft-capped logits in fp32."""
    dtype = jnp.float32  # of the product: on TPU and GPU, XLA would round it to that of hidden
    z = jnp.einsum("btd,vd->btv", hidden, table.astype(hidden.dtype), preferred_element_type=dtype)
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
    return _total(_cross_entropy, (softcap, None), chunk, hidden, table, targets, (), weights)


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
    caps, teacher_table = (softcap, teacher_softcap), teacher_table.astype(teacher_hidden.dtype)
    teacher = lax.stop_gradient((teacher_hidden, teacher_table))
    return _total(_kl_to_teacher, caps, chunk, hidden, table, *teacher, weights)


def kl_to_uniform(
    hidden: Hidden,
    table: Table,
    weights: Weights,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Σ w · KL(uniform ‖ p) = Σ w · (logsumexp z − mean z − log V)."""
    return _total(_kl_to_uniform, (softcap, None), chunk, hidden, table, (), (), weights)


def greedy(
    hidden: Hidden, table: Table, softcap: float | None = None, chunk: int | None = None
) -> Int[Array, "B T"]:
    """The most likely next token at each position, the first of equals."""

    def on_device(hidden, table):
        table = _gathered(table.astype(hidden.dtype))

        def pick(h):
            z = logits(h, table, softcap)
            best, token = jnp.max(z, -1), jnp.argmax(z, -1) + first_of(z.shape[-1], "tensor")
            none = jnp.iinfo(token.dtype).max
            token = jnp.where(best == lax.pmax(best, several("tensor")), token, none)
            return lax.pmin(token, several("tensor"))

        picks = lax.map(pick, _split(hidden, chunk or _chunk_size(hidden, table)))
        return _join(picks, hidden.shape[1])

    mapped = on_devices(on_device, (P(BATCH), TABLE), P(BATCH))
    return mapped(pad_rows(hidden), table)[: hidden.shape[0]]


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
    log_p, size = _log_softmax(z), z.shape[-1]
    hot = jax.nn.one_hot(targets - first_of(size, "tensor"), size, dtype=z.dtype)
    return -_over_vocabulary(jnp.sum, lax.psum, hot * log_p), jnp.exp(log_p) - hot


def _kl_to_teacher(z, teacher_hidden, teacher_table, teacher_softcap):
    log_p = _log_softmax(z)
    log_t = _log_softmax(logits(teacher_hidden, teacher_table, teacher_softcap))
    t = jnp.exp(log_t)
    return _over_vocabulary(jnp.sum, lax.psum, t * (log_t - log_p)), jnp.exp(log_p) - t


def _kl_to_uniform(z, _nothing, _table, _softcap):
    log_p, size = _log_softmax(z), z.shape[-1] * parts("tensor")
    loss = -_over_vocabulary(jnp.sum, lax.psum, log_p) / size - jnp.log(size)
    return loss, jnp.exp(log_p) - 1 / size


# ---------------------------------------- the vocabulary, which `tensor` splits: z is a part of it


def _over_vocabulary(reduce, combine, z):
    """A reduction over all of the vocabulary, e.g. (jnp.max, lax.pmax)."""
    return combine(reduce(z, axis=-1), several("tensor"))


def _log_softmax(z):
    z = z - _over_vocabulary(jnp.max, lax.pmax, z)[..., None]
    return z - jnp.log(_over_vocabulary(jnp.sum, lax.psum, jnp.exp(z)))[..., None]


# ------------------------------------------------------------------------------- the one machine


def _total(
    loss: Callable,
    softcaps: tuple[float | None, float | None],  # (student's, teacher's)
    chunk: int | None,
    hidden: Hidden,
    table: Table,
    per_token: Any,  # what else the loss needs at each token: a pytree of [B, T, ...]
    teacher_table: Any,
    weights: Weights,
) -> Scalar:
    """Σ weights · loss, of any number of rows: those that the mesh lacks weigh nothing."""
    hidden, per_token, weights = pad_rows((hidden, per_token, weights))
    return _weighted_sum(loss, softcaps, chunk, hidden, table, per_token, teacher_table, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted_sum(loss, softcaps, chunk, hidden, table, per_token, teacher_table, weights):
    def on_device(hidden, table, per_token, teacher_table, weights):
        tables = _gathered((table.astype(hidden.dtype), teacher_table))
        if kernels := _kernels(hidden.dtype, tables):
            values = kernels.loss(*_flat(loss, softcaps, hidden, per_token, weights, *tables))
        else:
            values = _in_chunks(loss, softcaps, chunk, hidden, per_token, *tables)
        return _summed(weights, values.reshape(weights.shape))

    return on_devices(on_device, INPUTS, P())(hidden, table, per_token, teacher_table, weights)


def _forward(loss, softcaps, chunk, hidden, table, per_token, teacher_table, weights):
    def on_device(hidden, table, per_token, teacher_table, weights):
        dtype, tables = table.dtype, _gathered((table.astype(hidden.dtype), teacher_table))
        if kernels := _kernels(hidden.dtype, tables):
            arguments = _flat(loss, softcaps, hidden, per_token, weights, *tables)
            values, d_hidden, d_table = kernels.loss_and_gradients(*arguments)
            values, d_hidden = values.reshape(weights.shape), d_hidden.reshape(hidden.shape)
        else:
            values, d_hidden, d_table = _gradients_in_chunks(
                loss, softcaps, chunk, hidden, per_token, weights, *tables
            )
        d_hidden = lax.psum(d_hidden, several("tensor"))
        d_table = lax.psum(scatter(d_table, "fsdp", axis=0), several("data"))
        d_weights = values.astype(weights.dtype)
        return _summed(weights, values), d_hidden, d_table.astype(dtype), d_weights

    mapped = on_devices(on_device, INPUTS, (P(), P(BATCH), TABLE, P(BATCH)))
    total, *gradients = mapped(hidden, table, per_token, teacher_table, weights)
    return total, tuple(gradients)


def _backward(loss, softcaps, chunk, gradients, cotangent):
    scaled = jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), gradients)
    d_hidden, d_table, d_weights = scaled
    return d_hidden, d_table, None, None, d_weights  # None: targets and teacher are constants


_weighted_sum.defvjp(_forward, _backward)


def _gathered(tables: Any) -> Any:
    """The part of the vocabulary that a device's `fsdp` group has."""
    return jax.tree.map(lambda table: gather(table, "fsdp", axis=0), tables)


def _kernels(dtype: jnp.dtype, tables: Any) -> Any:
    """The module whose kernels compute a device's part here, if any."""
    widths = [table.shape[1] for table in jax.tree.leaves(tables)]
    return next((made for made in (head_tpu, head_gpu) if made.chosen(dtype, *widths)), None)


def _summed(weights: Weights, values: Float[Array, "B T"]) -> Scalar:
    """The weighted sum of the losses of all devices' tokens."""
    return lax.psum(jnp.sum(weights * values), several(*BATCH))


def _in_chunks(loss, softcaps, chunk, hidden, per_token, table, teacher_table):
    """The loss of each of a device's tokens, some positions at a time."""

    def of_chunk(piece):
        h, aux = piece
        return loss(logits(h, table, softcaps[0]), aux, teacher_table, softcaps[1])[0]

    pieces = _split((hidden, per_token), chunk or _chunk_size(hidden, table))
    return _join(lax.map(of_chunk, pieces), hidden.shape[1])


def _gradients_in_chunks(loss, softcaps, chunk, hidden, per_token, weights, table, teacher_table):
    """The same, and by a device's part of the vocabulary the weighted sum's gradients.

    That in the table is fp32.
    """

    def of_chunk(d_table, piece):
        h, aux, w = piece
        z = logits(h, table, softcaps[0])
        value, dz = loss(z, aux, teacher_table, softcaps[1])
        dz = dz * w[..., None]
        if softcaps[0] is not None:
            dz = dz * (1 - jnp.square(z / softcaps[0]))
        dz = dz.astype(h.dtype)
        d_hidden = jnp.einsum("btv,vd->btd", dz, table)
        d_table += jnp.einsum("btv,btd->vd", dz, h, preferred_element_type=jnp.float32)
        return d_table, (value, d_hidden)

    pieces = _split((hidden, per_token, weights), chunk or _chunk_size(hidden, table))
    start = jnp.zeros(table.shape, jnp.float32)
    d_table, made = lax.scan(of_chunk, start, pieces)
    values, d_hidden = (_join(x, hidden.shape[1]) for x in made)
    return values, d_hidden, d_table


def _flat(loss, softcaps, hidden, per_token, weights, table, teacher_table):
    """The same as arguments of the kernels: tokens side by side."""
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    with_teacher, with_targets = loss is _kl_to_teacher, loss is _cross_entropy
    vocabulary = table.shape[0]
    bits = [None if cap is None else cap * head_tile.LOG2_E for cap in softcaps]
    rows = head_tile.Rows(
        flat(hidden),
        weights.reshape(-1, 1),
        flat(per_token) if with_teacher else None,
        (per_token - first_of(vocabulary, "tensor")).reshape(-1, 1) if with_targets else None,
    )
    tables = head_tile.Tables(table, teacher_table if with_teacher else None)
    made = head_tile.Head(
        target="teacher" if with_teacher else "token" if with_targets else "uniform",
        softcap=bits[0],
        teacher_softcap=bits[1],
        vocabulary=vocabulary,
        whole=vocabulary * parts("tensor"),
    )
    return made, rows, tables


def _chunk_size(hidden: Hidden, table: Table) -> int:
    """Time positions per chunk such that a device's logits stay within LOGITS_PER_CHUNK."""
    return max(1, LOGITS_PER_CHUNK // (hidden.shape[0] * table.shape[0]))


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

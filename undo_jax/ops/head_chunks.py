"""Computes any `HeadLoss` of a batch, one chunk of time after another, on every mesh.

The gradients of a chunk are computed while its logits are live. `weighted_sum` stores them in the
forward pass, so that the backward pass only scales them: one pass over the vocabulary. `per_token`
knows the tokens' cotangents only in the backward pass, which recomputes the logits.

On a mesh the vocabulary is split over `tensor`. Along `fsdp`, devices have different rows and
different parts of the tables: either the group's rows are gathered or its tables, see `head_split`.
The table's gradient is summed in fp32 on each device and reduced once, after the last chunk.
`head_tpu` or `head_gpu` computes a device's part if it is `chosen` and the loss has a kernel.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from undo_jax.ops import head_gpu, head_tile, head_tpu
from undo_jax.ops.head_losses import Axes, HeadLoss, Tokens, Vocabulary
from undo_jax.ops.head_split import after, device_rows, gather_smaller, join, split
from undo_jax.runtime.collectives import on_devices, reduce_scatter, shard_offset
from undo_jax.runtime.mesh import BATCH, device_kind, shard_count, split_axes

LOGITS_PER_CHUNK = 2**28  # elements of a chunk's logits on one device: 1 GiB in fp32
# On CPU a chunk's logits stay in a core's cache, but it has enough tokens to make use of a table.
CACHED_LOGITS, CACHED_TOKENS = 2**18, 128

TABLE = P(("tensor", "fsdp"))
INPUTS = P(BATCH), TABLE, P(BATCH), TABLE, P(BATCH)  # hidden, table, tokens, teacher's, weights

Hidden = Float[Array, "B T D"]
Table = Float[Array, "V D"]
Weights = Float[Array, "B T"]
Scalar = Float[Array, ""]


class HeadForm(NamedTuple):
    """A loss, and how the logits that it reads are computed: all static."""

    loss: HeadLoss
    softcap: float | None
    teacher_softcap: float | None
    used: int | None  # rows of the tables that are tokens, the rest padding; None: all
    chunk: int | None  # positions of T per chunk; None: as many as fit


def logits(hidden: Hidden, table: Table, softcap: float | None) -> Float[Array, "B T V"]:
    """Returns soft-capped logits in fp32."""
    z = product("btd,vd->btv", hidden, table.astype(hidden.dtype))
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def product(axes: str, x: Array, y: Array) -> Array:
    """Computes an `einsum` with an fp32 result, which XLA would round to the inputs' dtype.

    On CPU the inputs are converted to fp32, because XLA rejects some shapes in bf16.
    """
    if device_kind() == "cpu":
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_sum(
    form: HeadForm,
    hidden: Hidden,
    table: Table,
    tokens: Tokens,
    teacher_table: Any,
    weights: Weights,
) -> Scalar:
    """Returns Σ weights · loss; B is a multiple of the devices that split rows."""

    def on_device(*inputs):
        return _summed(form.loss, inputs[-1], _values(form, *inputs))

    return on_devices(on_device, INPUTS, P())(hidden, table, tokens, teacher_table, weights)


def _forward(form, *inputs):
    def on_device(*inputs):
        values, d_hidden, d_table = _gradients(form, *inputs)
        weights = inputs[-1]
        d_weights = values.astype(weights.dtype)
        return _summed(form.loss, weights, values), d_hidden, d_table, d_weights

    total, *gradients = on_devices(on_device, INPUTS, (P(), P(BATCH), TABLE, P(BATCH)))(*inputs)
    return total, tuple(gradients)


def _backward(_form, gradients, cotangent):
    scaled = jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), gradients)
    d_hidden, d_table, d_weights = scaled
    return d_hidden, d_table, None, None, d_weights  # None: targets and teacher are constants


weighted_sum.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def per_token(
    form: HeadForm, hidden: Hidden, table: Table, tokens: Tokens, teacher_table: Any
) -> Float[Array, "B T"]:
    """Returns the loss of each token; B is a multiple of the devices that split rows."""

    def on_device(hidden, table, tokens, teacher_table):
        weights = jnp.zeros(hidden.shape[:2])  # unused: losses of tokens do not depend on weights
        return _values(form, hidden, table, tokens, teacher_table, weights)

    return on_devices(on_device, INPUTS[:-1], P(BATCH))(hidden, table, tokens, teacher_table)


def _per_token_forward(form, *inputs):
    return per_token(form, *inputs), inputs


def _per_token_backward(form, inputs, cotangent):
    on_device = lambda *inputs: _gradients(form, *inputs)[1:]  # noqa: E731
    d_hidden, d_table = on_devices(on_device, INPUTS, (P(BATCH), TABLE))(*inputs, cotangent)
    return d_hidden, d_table, None, None


per_token.defvjp(_per_token_forward, _per_token_backward)


# ------------------------------------------------------------- on one device, for its rows: [b, T]


def _values(form, hidden, table, tokens, teacher_table, weights):
    """Returns the loss of each of the device's tokens, reduced over the whole vocabulary."""
    tables = table.astype(hidden.dtype), teacher_table
    axes, rows, tables = gather_smaller((hidden, tokens, weights), tables)
    if kernels := _kernels(form.loss, hidden.dtype, tables):
        values = kernels.loss(*_flat(form, axes, *rows, *tables)).reshape(rows[-1].shape)
    else:
        values = _in_chunks(form, axes, *rows[:-1], *tables)
    return device_rows(axes, values, len(hidden))


def _gradients(form, hidden, table, tokens, teacher_table, weights):
    """Returns `_values` and the gradients of Σ weights · loss in hidden states and table."""
    tables = table.astype(hidden.dtype), teacher_table
    axes, rows, tables = gather_smaller((hidden, tokens, weights), tables)
    if kernels := _kernels(form.loss, hidden.dtype, tables):
        results = kernels.loss_and_gradients(*_flat(form, axes, *rows, *tables))
        values, d_hidden, d_table = results
        values, d_hidden = values.reshape(rows[-1].shape), d_hidden.reshape(rows[0].shape)
    else:
        values, d_hidden, d_table = _gradients_in_chunks(form, axes, *rows, *tables)
    # sum the gradients over devices
    d_hidden = lax.psum(d_hidden, split_axes("tensor"))
    if "fsdp" in axes:
        d_hidden = reduce_scatter(d_hidden, "fsdp", axis=0)
        d_table = after(d_table, d_hidden)
    else:
        d_table = reduce_scatter(d_table, "fsdp", axis=0)
    d_table = lax.psum(d_table, split_axes("data"))
    return device_rows(axes, values, len(hidden)), d_hidden, d_table.astype(table.dtype)


def _kernels(loss: HeadLoss, dtype: jnp.dtype, tables: Any) -> Any:
    """Returns the module whose kernels compute a device's part of this loss, if any."""
    if loss.kernel is None:
        return None
    widths = [table.shape[1] for table in jax.tree.leaves(tables)]
    return next((module for module in (head_tpu, head_gpu) if module.chosen(dtype, *widths)), None)


def _summed(loss: HeadLoss, weights: Weights, values: Float[Array, "B T"]) -> Scalar:
    """Returns the weighted sum of the losses of all devices' tokens."""
    return lax.psum(jnp.sum(weights * _counted(loss, weights, values)), split_axes(*BATCH))


def _counted(loss: HeadLoss, weights: Array, x: Array) -> Array:
    """Returns `x`, but 0 where the weight is 0: in padding a loss may be inf or nan.

    Losses with a kernel are finite in padding.
    """
    return x if loss.kernel else jnp.where(weights != 0, x, 0)


def _of_chunk(form, axes, table, teacher_table, h, tokens):
    """Returns a chunk's logits, the loss of its tokens, and its gradient in them, 0 in padding."""
    z = logits(h, table, form.softcap)
    valid = valid_rows(z.shape[-1], form.used, axes)
    mask = lambda x, padding: x if valid is None else jnp.where(valid, x, padding)  # noqa: E731

    def teacher():
        if tokens.teacher is None:
            raise ValueError("this loss asks for a teacher's logits: give it a teacher")
        y = logits(tokens.teacher, teacher_table, form.teacher_softcap)
        return mask(y, head_tile.NEVER)

    size = z.shape[-1] * shard_count(*axes) if form.used is None else form.used
    vocabulary = Vocabulary(axes, size, valid)
    value, dz = form.loss.of_chunk(mask(z, head_tile.NEVER), tokens, teacher, vocabulary)
    return z, value, mask(dz, 0)


def valid_rows(size: int, used: int | None, axes: Axes) -> Bool[Array, " V"] | None:
    """Returns which of a device's `size` rows of a table are tokens; None without padding."""
    return None if used is None else shard_offset(size, *axes) + jnp.arange(size) < used


def _in_chunks(form, axes, hidden, tokens, table, teacher_table):
    """Returns the loss of each token, computed chunk by chunk."""
    of_chunk = lambda piece: _of_chunk(form, axes, table, teacher_table, *piece)[1]  # noqa: E731
    pieces = split((hidden, tokens), form.chunk or chunk_size(hidden, table))
    return join(lax.map(of_chunk, pieces), hidden.shape[1])


def _gradients_in_chunks(form, axes, hidden, tokens, weights, table, teacher_table):
    """Returns `_in_chunks` and the weighted sum's gradients; the table's is fp32."""

    def of_chunk(d_table, piece):
        h, aux, w = piece
        z, value, dz = _of_chunk(form, axes, table, teacher_table, h, aux)
        dz = _counted(form.loss, w[..., None], dz) * w[..., None]
        if form.softcap is not None:
            dz = dz * (1 - jnp.square(z / form.softcap))
        dz = dz.astype(h.dtype)
        d_hidden = jnp.einsum("btv,vd->btd", dz, table)
        d_table += product("btd,btv->dv", h, dz)
        return d_table, (value, d_hidden)

    pieces = split((hidden, tokens, weights), form.chunk or chunk_size(hidden, table))
    start = jnp.zeros(table.shape[::-1], jnp.float32)
    d_table, chunks = lax.scan(of_chunk, start, pieces)
    values, d_hidden = (join(x, hidden.shape[1]) for x in chunks)
    return values, d_hidden, d_table.T


def _flat(form, axes, hidden, tokens, weights, table, teacher_table):
    """Returns the arguments of the kernels, with rows and time flattened to one axis."""
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    kernel, vocabulary = form.loss.kernel, table.shape[0]
    with_teacher, first = kernel == "teacher", shard_offset(vocabulary, *axes)
    in_bits = lambda cap: None if cap is None else cap * head_tile.LOG2_E  # noqa: E731
    total, used = vocabulary * shard_count(*axes), None
    if form.used is not None:
        total = form.used
        used = jnp.full((weights.size, 1), jnp.clip(form.used - first, 0, vocabulary))
    rows = head_tile.TokenRows(
        flat(hidden),
        weights.reshape(-1, 1),
        flat(tokens.teacher) if with_teacher else None,
        (tokens.targets - first).reshape(-1, 1) if kernel == "token" else None,
        used,
    )
    tables = head_tile.Tables(table, teacher_table if with_teacher else None)
    caps = in_bits(form.softcap), in_bits(form.teacher_softcap)
    return head_tile.HeadSpec(kernel, *caps, vocabulary, total, axes), rows, tables


# --------------------------------------------------------------------------------- pieces of time


def chunk_size(hidden: Hidden, table: Table) -> int:
    """Returns time positions per chunk, bounded by LOGITS_PER_CHUNK and on CPU by its caches."""
    batch, vocabulary = hidden.shape[0], table.shape[0]
    tokens = LOGITS_PER_CHUNK // vocabulary
    if device_kind() == "cpu":
        tokens = min(tokens, max(CACHED_TOKENS, CACHED_LOGITS // vocabulary))
    return max(1, tokens // batch)

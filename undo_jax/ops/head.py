"""Losses on hidden states, in which the [B, T, V] logits of a batch never exist.

`weighted_sum` is Σ_bt weights[b, t] · l(z[b, t]) with soft-capped logits z and any `HeadLoss` l,
`per_token` is l(z[b, t]); `head_chunks` computes them in chunks of time. The gradient with respect
to a token's weight is that token's loss. No gradient reaches targets, a teacher or `extra`.
In padded tables only the first `used` rows are tokens: no result depends on the other rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.ops import head_chunks, head_tile
from undo_jax.ops.head_chunks import (
    TABLE,
    HeadForm,
    Hidden,
    Scalar,
    Table,
    Weights,
    chunk_size,
    logits,
    valid_rows,
)
from undo_jax.ops.head_losses import (
    CROSS_ENTROPY,
    KL_TO_TEACHER,
    KL_TO_UNIFORM,
    Axes,
    HeadLoss,
    Tokens,
)
from undo_jax.ops.head_split import device_rows, gather_smaller, join, split
from undo_jax.runtime.collectives import on_devices, shard_offset
from undo_jax.runtime.mesh import BATCH, split_axes
from undo_jax.runtime.sharding import pad_rows

Targets = Int[Array, "B T"]


class Teacher(NamedTuple):
    """A model whose logits a loss reads: its hidden states, table and soft-cap."""

    hidden: Float[Array, "B T D2"]
    table: Float[Array, "V D2"]
    softcap: float | None = None


def weighted_sum(
    loss: HeadLoss,
    hidden: Hidden,
    table: Table,
    weights: Weights,
    softcap: float | None = None,
    *,
    targets: Targets | None = None,
    teacher: Teacher | None = None,
    extra: Any = (),
    used: int | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Returns Σ w · loss. B need not divide the mesh: it is padded with rows of weight 0.

    Args:
        loss: The loss l of a token's logits.
        hidden: Final hidden states.
        table: The output embedding.
        weights: The weight of each token.
        softcap: Logits are `softcap * tanh(z / softcap)`; None leaves them as they are.
        targets: Target tokens, for losses that read them.
        teacher: The teacher, for losses that read its logits.
        extra: A pytree of further inputs of the loss at each token, [B, T, ...]; a scalar is the
            same for all tokens.
        used: The number of rows of the table that are tokens; None: all.
        chunk: Positions of T per chunk; None: as many as fit.

    Raises:
        ValueError: The loss needs targets or a teacher, or its kernel cannot read `extra`.
    """
    tokens, teacher_table, teacher_cap = _loss_inputs(loss, hidden, targets, teacher, extra)
    hidden, tokens, weights = pad_rows((hidden, tokens, weights))
    form = HeadForm(loss, softcap, teacher_cap, used, chunk)
    return head_chunks.weighted_sum(form, hidden, table, tokens, teacher_table, weights)


def per_token(
    loss: HeadLoss,
    hidden: Hidden,
    table: Table,
    softcap: float | None = None,
    *,
    used: int | None = None,
    chunk: int | None = None,
    **inputs: Any,
) -> Float[Array, "B T"]:
    """Returns the loss of each token. Arguments and errors are those of `weighted_sum`.

    The backward pass recomputes the logits: only then is each token's cotangent known.
    """
    tokens, teacher_table, teacher_cap = _loss_inputs(loss, hidden, **inputs)
    form, count = HeadForm(loss, softcap, teacher_cap, used, chunk), hidden.shape[0]
    hidden, tokens = pad_rows((hidden, tokens))
    values: Any = head_chunks.per_token(form, hidden, table, tokens, teacher_table)
    return values[:count]


def log_probabilities(
    hidden: Hidden, table: Table, targets: Targets, softcap: float | None = None, **options: Any
) -> Float[Array, "B T"]:
    """Returns log p(target) of each token, in nats. Options are those of `per_token`."""
    return -per_token(CROSS_ENTROPY, hidden, table, softcap, targets=targets, **options)


def cross_entropy(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    weights: Weights,
    softcap: float | None = None,
    **options: Any,
) -> Scalar:
    """Returns Σ w · −log p(target). Options are those of `weighted_sum`."""
    return weighted_sum(CROSS_ENTROPY, hidden, table, weights, softcap, targets=targets, **options)


def kl_to_teacher(
    hidden: Hidden,
    table: Table,
    teacher_hidden: Float[Array, "B T D2"],
    teacher_table: Float[Array, "V D2"],
    weights: Weights,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    **options: Any,
) -> Scalar:
    """Returns Σ w · KL(p_teacher ‖ p_student); no gradient reaches the teacher."""
    teacher = Teacher(teacher_hidden, teacher_table, teacher_softcap)
    return weighted_sum(KL_TO_TEACHER, hidden, table, weights, softcap, teacher=teacher, **options)


def kl_to_uniform(
    hidden: Hidden, table: Table, weights: Weights, softcap: float | None = None, **options: Any
) -> Scalar:
    """Returns Σ w · KL(uniform ‖ p) = Σ w · (logsumexp z − mean z − log V)."""
    return weighted_sum(KL_TO_UNIFORM, hidden, table, weights, softcap, **options)


def _loss_inputs(
    loss: HeadLoss,
    hidden: Hidden,
    targets: Any = None,
    teacher: Teacher | None = None,
    extra: Any = (),
) -> tuple[Tokens, Any, float | None]:
    """Returns per-token inputs of a loss, the teacher's table and the teacher's soft-cap."""
    if loss.kernel is not None:
        if {"token": targets, "teacher": teacher}.get(loss.kernel, ()) is None:
            raise ValueError(f"kernel={loss.kernel!r}: such a loss needs targets or a teacher")
        if jax.tree.leaves(extra):
            raise ValueError(
                f"a loss with the kernel {loss.kernel!r} is given `extra`, which no kernel reads: "
                "make it a HeadLoss without a kernel"
            )
        targets = targets if loss.kernel == "token" else None
    broadcast = lambda x: x if jnp.ndim(x) else jnp.full(hidden.shape[:2], x, jnp.float32)  # noqa: E731
    extra = lax.stop_gradient(jax.tree.map(broadcast, extra))
    if teacher is None:
        return Tokens(targets, None, extra), (), None
    arrays = teacher.hidden, teacher.table.astype(teacher.hidden.dtype)
    teacher_hidden, teacher_table = lax.stop_gradient(arrays)
    return Tokens(targets, teacher_hidden, extra), teacher_table, teacher.softcap


def read(
    of_chunk: Callable[[Array, Any, Axes], Any],
    hidden: Hidden,
    table: Table,
    softcap: float | None = None,
    *,
    tokens: Any = (),
    used: int | None = None,
    chunk: int | None = None,
) -> Any:
    """Computes a function of the logits of each token, without gradient.

    Args:
        of_chunk: `of_chunk(z, tokens, axes)` returns a pytree of [B, T] from a device's logits of a
            chunk, the chunk's part of `tokens`, and the mesh axes that split the vocabulary.
        hidden, table, softcap, used, chunk: As in `weighted_sum`.
        tokens: A pytree of [B, T].

    Returns:
        The results of all chunks, a pytree of [B, T].
    """

    def on_device(hidden, table, tokens):
        axes, rows, (table,) = gather_smaller((hidden, tokens), (table.astype(hidden.dtype),))

        def of_piece(piece):
            h, chunk_tokens = piece
            z, valid = logits(h, table, softcap), valid_rows(len(table), used, axes)
            z = z if valid is None else jnp.where(valid, z, head_tile.NEVER)
            return of_chunk(z, chunk_tokens, axes)

        chunks = lax.map(of_piece, split(rows, chunk or chunk_size(rows[0], table)))
        rejoin = lambda x: device_rows(axes, join(x, hidden.shape[1]), len(hidden))  # noqa: E731
        return jax.tree.map(rejoin, chunks)

    mapped = on_devices(on_device, (P(BATCH), TABLE, P(BATCH)), P(BATCH))
    hidden_rows, token_rows = pad_rows((hidden, tokens))
    return jax.tree.map(lambda x: x[: hidden.shape[0]], mapped(hidden_rows, table, token_rows))


def best(z: Float[Array, "B T v"], axes: Axes) -> Int[Array, "B T"]:
    """Returns the most likely token, the first of equals; `z` is a shard of the vocabulary."""
    top, token = jnp.max(z, -1), jnp.argmax(z, -1) + shard_offset(z.shape[-1], *axes)
    none = jnp.iinfo(token.dtype).max
    token = jnp.where(top == lax.pmax(top, split_axes(*axes)), token, none)
    return lax.pmin(token, split_axes(*axes))


def greedy(
    hidden: Hidden, table: Table, softcap: float | None = None, **options: Any
) -> Int[Array, "B T"]:
    """Returns the most likely next token, the first of equals. Options are those of `read`."""
    return read(lambda z, _, axes: best(z, axes), hidden, table, softcap, **options)

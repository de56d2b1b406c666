"""Losses on hidden states: the [B, T, V] logits of a batch never exist.

`weighted_sum` is Σ_bt weights[b, t] · l(z[b, t]) with soft-capped logits z and any `HeadLoss` l,
`per_token` is l(z[b, t]); `head_chunks` computes them in chunks of time. The gradient with respect
to a token's weight is that token's loss. No gradient reaches targets, a teacher or `extra`.
Of tables that are padded, the first `used` rows alone are tokens: nothing depends on the others.
`reference_*` compute the same in the plainest way, for the tests.
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
    Form,
    Hidden,
    Scalar,
    Table,
    Weights,
    chunk_size,
    logits,
    tokens_here,
)
from undo_jax.ops.head_losses import (
    CROSS_ENTROPY,
    KL_TO_TEACHER,
    KL_TO_UNIFORM,
    Axes,
    HeadLoss,
    Tokens,
)
from undo_jax.ops.head_split import join, met, own, split
from undo_jax.runtime.collectives import on_devices, shard_offset
from undo_jax.runtime.mesh import BATCH, split_axes
from undo_jax.runtime.sharding import pad_rows


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
    targets: Int[Array, "B T"] | None = None,
    teacher: Teacher | None = None,
    extra: Any = (),
    used: int | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Σ w · loss. B need not divide the mesh: it is padded with rows of weight 0.

    `extra` is a pytree of what else the loss reads at each token, [B, T, ...]; a scalar is the same
    for all tokens. Raises ValueError if a loss with a kernel is given `extra`, which none reads.
    """
    tokens, teacher_table, teacher_cap = _others(loss, hidden, targets, teacher, extra)
    hidden, tokens, weights = pad_rows((hidden, tokens, weights))
    form = Form(softcap, teacher_cap, used)
    return head_chunks.weighted_sum(
        loss, form, chunk, hidden, table, tokens, teacher_table, weights
    )


def per_token(
    loss: HeadLoss,
    hidden: Hidden,
    table: Table,
    softcap: float | None = None,
    *,
    targets: Int[Array, "B T"] | None = None,
    teacher: Teacher | None = None,
    extra: Any = (),
    used: int | None = None,
    chunk: int | None = None,
) -> Float[Array, "B T"]:
    """The loss of each token. Raises what `weighted_sum` does.

    The backward pass recomputes the logits: only then is each token's cotangent known.
    """
    tokens, teacher_table, teacher_cap = _others(loss, hidden, targets, teacher, extra)
    count, form = hidden.shape[0], Form(softcap, teacher_cap, used)
    hidden, tokens = pad_rows((hidden, tokens))
    values: Any = head_chunks.per_token(loss, form, chunk, hidden, table, tokens, teacher_table)
    return values[:count]


def log_probabilities(
    hidden: Hidden,
    table: Table,
    targets: Int[Array, "B T"],
    softcap: float | None = None,
    chunk: int | None = None,
    used: int | None = None,
) -> Float[Array, "B T"]:
    """log p(target) of each token."""
    return -per_token(
        CROSS_ENTROPY, hidden, table, softcap, targets=targets, chunk=chunk, used=used
    )


def cross_entropy(
    hidden: Hidden,
    table: Table,
    targets: Int[Array, "B T"],
    weights: Weights,
    softcap: float | None = None,
    chunk: int | None = None,
    used: int | None = None,
) -> Scalar:
    """Σ w · −log p(target)."""
    return weighted_sum(
        CROSS_ENTROPY, hidden, table, weights, softcap, targets=targets, chunk=chunk, used=used
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
    used: int | None = None,
) -> Scalar:
    """Σ w · KL(p_teacher ‖ p_student) at temperature 1; no gradient reaches the teacher."""
    teacher = Teacher(teacher_hidden, teacher_table, teacher_softcap)
    return weighted_sum(
        KL_TO_TEACHER, hidden, table, weights, softcap, teacher=teacher, chunk=chunk, used=used
    )


def kl_to_uniform(
    hidden: Hidden,
    table: Table,
    weights: Weights,
    softcap: float | None = None,
    chunk: int | None = None,
    used: int | None = None,
) -> Scalar:
    """Σ w · KL(uniform ‖ p) = Σ w · (logsumexp z − mean z − log V)."""
    return weighted_sum(KL_TO_UNIFORM, hidden, table, weights, softcap, chunk=chunk, used=used)


def _others(
    loss: HeadLoss, hidden: Hidden, targets: Any, teacher: Teacher | None, extra: Any
) -> tuple[Tokens, Any, float | None]:
    """What a loss reads beside the model: per-token values, the teacher's table, its soft-cap."""
    needed = {"token": targets, "teacher": teacher}
    if loss.kernel is not None and needed.get(loss.kernel, ()) is None:
        raise ValueError(f"kernel={loss.kernel!r}: such a loss needs targets or a teacher")
    if loss.kernel is not None and jax.tree.leaves(extra):
        raise ValueError(
            f"a loss with the kernel {loss.kernel!r} is given `extra`, which no kernel reads: "
            "make it a HeadLoss without a kernel"
        )
    everywhere = lambda x: x if jnp.ndim(x) else jnp.full(hidden.shape[:2], x, jnp.float32)  # noqa: E731
    extra = lax.stop_gradient(jax.tree.map(everywhere, extra))
    if teacher is None:
        return Tokens(targets, None, extra), (), None
    known = teacher.hidden, teacher.table.astype(teacher.hidden.dtype)
    teacher_hidden, teacher_table = lax.stop_gradient(known)
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
    """What `of_chunk(z, tokens, axes)` gives for each token, a pytree of [B, T]; no gradient.

    `z` are a device's logits of a chunk, `tokens` the chunk's part of a pytree of [B, T], and
    `axes` the mesh axes that the vocabulary is split over, as in `HeadLoss`.
    """

    def on_device(hidden, table, tokens):
        axes, rows, (table,) = met((hidden, tokens), (table.astype(hidden.dtype),))

        def of_piece(piece):
            h, own_tokens = piece
            z, here = logits(h, table, softcap), tokens_here(len(table), used, axes)
            z = z if here is None else jnp.where(here, z, head_tile.NEVER)
            return of_chunk(z, own_tokens, axes)

        found = lax.map(of_piece, split(rows, chunk or chunk_size(rows[0], table)))
        return jax.tree.map(lambda x: own(axes, join(x, hidden.shape[1]), len(hidden)), found)

    mapped = on_devices(on_device, (P(BATCH), TABLE, P(BATCH)), P(BATCH))
    rows, others = pad_rows((hidden, tokens))
    return jax.tree.map(lambda x: x[: hidden.shape[0]], mapped(rows, table, others))


def best(z: Float[Array, "B T v"], axes: Axes) -> Int[Array, "B T"]:
    """The most likely token of the vocabulary, of which `z` is a shard; the first of equals."""
    top, token = jnp.max(z, -1), jnp.argmax(z, -1) + shard_offset(z.shape[-1], *axes)
    none = jnp.iinfo(token.dtype).max
    token = jnp.where(top == lax.pmax(top, split_axes(*axes)), token, none)
    return lax.pmin(token, split_axes(*axes))


def greedy(
    hidden: Hidden,
    table: Table,
    softcap: float | None = None,
    chunk: int | None = None,
    used: int | None = None,
) -> Int[Array, "B T"]:
    """The most likely next token at each position, the first of equals."""
    return read(lambda z, _, axes: best(z, axes), hidden, table, softcap, used=used, chunk=chunk)


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

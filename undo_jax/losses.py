"""Losses of a model on packed rows: weighted sums over tokens, accumulated in fp32."""

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from undo_jax.checks import LARGEST, SMALLEST
from undo_jax.models.head_only import hidden_states
from undo_jax.ops import head, head_losses
from undo_jax.ops.head_losses import HeadLoss, by_autodiff
from undo_jax.types import (
    LM,
    Batch,
    Frozen,
    Key,
    Metrics,
    Params,
    Refs,
    Rows,
    Taps,
    every_layer,
    table_shape,
    used,
)  # fmt: skip

Scalar = Float[Array, ""]
Temperature = float | Float[Array, ""]


def cross_entropy(lm: LM, params: Params, rows: Rows) -> Scalar:
    """Next-token cross entropy, in nats."""
    return of_head(head_losses.CROSS_ENTROPY, lm, params, rows)


def forward_kl(
    lm: LM, params: Params, teacher: Frozen, rows: Rows, temperature: Temperature = 1.0
) -> Scalar:
    """τ² KL(teacher ‖ student) at temperature τ, in nats; the two may differ in width and depth.

    τ² keeps the size of the gradient (Hinton et al., arXiv 1503.02531 §2). No gradient reaches the
    teacher. If `temperature` is the Python number 1, kernels for TPU and GPU are used. Raises
    ValueError for one that is not above 0, or whose square no fp32 holds.
    """
    if isinstance(temperature, int | float) and temperature == 1:
        return of_head(head_losses.KL_TO_TEACHER, lm, params, rows, teacher)
    return _softened(head_losses.FORWARD_KL, lm, params, teacher, rows, temperature)


def reverse_kl(
    lm: LM, params: Params, teacher: Frozen, rows: Rows, temperature: Temperature = 1.0
) -> Scalar:
    """τ² KL(student ‖ teacher) at temperature τ, in nats. Otherwise as `forward_kl`, in chunks."""
    return _softened(head_losses.REVERSE_KL, lm, params, teacher, rows, temperature)


def jsd(
    lm: LM, params: Params, teacher: Frozen, rows: Rows, temperature: Temperature = 1.0
) -> Scalar:
    """Jensen–Shannon: τ² (KL(teacher ‖ m) + KL(student ‖ m)) / 2 with m their mean, in chunks."""
    return _softened(head_losses.JENSEN_SHANNON, lm, params, teacher, rows, temperature)


def _softened(
    loss: HeadLoss, lm: LM, params: Params, teacher: Frozen, rows: Rows, temperature: Temperature
) -> Scalar:
    is_known = isinstance(temperature, int | float)
    if is_known and not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: it must be above 0 and finite")
    if is_known and not SMALLEST <= temperature * temperature <= LARGEST:
        raise ValueError(f"temperature={temperature}: fp32 must hold its square: give e.g. 2")
    return of_head(loss, lm, params, rows, teacher, temperature)


def uniform_kl(lm: LM, params: Params, rows: Rows) -> Scalar:
    """KL(uniform ‖ model), in nats: zero when every next token is equally likely."""
    return of_head(head_losses.KL_TO_UNIFORM, lm, params, rows)


def log_probabilities(lm: LM, params: Params, rows: Rows) -> Float[Array, "B T"]:
    """log p of each target."""
    hidden, table = lm.hidden(params, rows.inputs), lm.table(params)
    return head.log_probabilities(hidden, table, rows.targets, lm.softcap, used=used(lm))


def of_head(
    loss: HeadLoss,
    lm: LM,
    params: Params,
    rows: Rows,
    teacher: Frozen | None = None,
    extra: Any = (),
    states: tuple[Any, Any] = (None, None),
) -> Scalar:
    """Returns a head loss, summed over the tokens of rows with their weights.

    `teacher` is a frozen model whose logits the loss reads, and `extra` whatever else it reads.
    `states` are final hidden states of the model and of the teacher, if they are computed already.
    """
    hidden, teacher_hidden = states
    hidden = lm.hidden(params, rows.inputs) if hidden is None else hidden
    teacher_head = None
    if teacher is not None:
        if teacher_hidden is None:
            teacher_hidden = hidden_states(teacher, rows)
        teacher_table = teacher.lm.table(teacher.params)
        teacher_head = head.Teacher(teacher_hidden, teacher_table, teacher.lm.softcap)
    return head.weighted_sum(
        loss, hidden, lm.table(params), rows.weights, lm.softcap,
        targets=rows.targets, teacher=teacher_head, extra=extra, used=_used(lm, teacher),
    )  # fmt: skip


def _used(lm: LM, teacher: Frozen | None) -> int | None:
    """Rows of both tables that are tokens: those after them are padding of one at least."""
    counts = used(lm), used(lm if teacher is None else teacher.lm)
    return min((count for count in counts if count is not None), default=None)


def mse(
    states: Float[Array, "*n B T D"], targets: Array, weights: Float[Array, "B T"]
) -> Float[Array, "*n"]:
    """Returns the mean squared error over D, weighted over tokens, in fp32."""
    error = jnp.square(states.astype(jnp.float32) - targets.astype(jnp.float32))
    return jnp.sum(weights * jnp.mean(error, -1), (-2, -1))


class Sequences(NamedTuple):
    """Sums over sequences: S is 1, or T with segments.

    With S = T a sequence's sum is at its last token, and elsewhere the weight is 0.
    """

    totals: Float[Array, "B S"]
    lengths: Float[Array, "B S"]  # tokens that count, at least 1
    weights: Float[Array, "B S"]  # the sum of its tokens' weights: 1 over the batch


def by_sequence(rows: Rows, values: Float[Array, "B T"]) -> Sequences:
    """The values of each sequence's tokens summed; tokens of weight 0 do not count.

    A sequence is a document's part of a row or, without segments, a row. Its weight is the sum of
    its tokens', so that a loss Σ weights · l(sequence) is the same however the batch is split.
    """
    counts = rows.weights > 0
    sums = jnp.where(counts, values, 0.0), counts.astype(jnp.float32), rows.weights
    if rows.segments is None:
        totals, lengths, weights = (jnp.sum(x, axis=1, keepdims=True) for x in sums)
    else:
        edge = rows.segments[:, 1:] != rows.segments[:, :-1]
        first, last = (jnp.pad(edge, ((0, 0), p), constant_values=True) for p in ((1, 0), (0, 1)))
        totals, lengths, weights = _running(first, sums)
        weights = jnp.where(last, weights, 0.0)
    return Sequences(totals, jnp.maximum(lengths, 1.0), weights)


def _running(first: Array, values: tuple[Array, ...]) -> tuple[Array, ...]:
    """Running sums along time that restart at each `first`; always added in the same order."""

    def add(before, after):
        begun, later = before[0] | after[0], after[0]
        sums = zip(before[1], after[1], strict=True)
        return begun, tuple(jnp.where(later, y, x + y) for x, y in sums)

    return lax.associative_scan(add, (first, values), axis=1)[1]


@every_layer
def language_modelling(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
) -> tuple[Scalar, Metrics]:
    """Pretraining and the relearning attack: cross entropy on `train`."""
    return cross_entropy(lm, params, batch["train"]), {}


@every_layer
def distillation(
    lm: LM,
    params: Params,
    refs: Refs,
    batch: Batch,
    key: Key,
    *,
    temperature: Temperature = 1.0,
) -> tuple[Scalar, Metrics]:
    """Forward KL to `teacher` on `train`, no cross-entropy term (paper §3)."""
    return forward_kl(lm, params, refs["teacher"], batch["train"], temperature), {}


def activation_distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key, *, state_weight: float = 1.0
) -> tuple[Scalar, Metrics]:
    """L = KL(teacher ‖ student) + state_weight · mean over l of MSE(h_l, h_l of `teacher`).

    h_l is the residual stream after l layers, from the scaled embedding, l = 0, to the state before
    the last norm (as FitNets, arXiv 1412.6550, without a projection). Raises ValueError for a
    teacher of another width or number of layers.
    """
    teacher, rows = refs["teacher"], batch["train"]
    for name, student_size, teacher_size in (
        ("width", table_shape(lm).shape[1], table_shape(teacher.lm).shape[1]),
        ("layers", lm.layers, teacher.lm.layers),
    ):
        if student_size != teacher_size:
            raise ValueError(
                f"the student has {name}={student_size}, its teacher {teacher_size}: their states "
                "cannot be compared, distil logits alone (loss=distillation)"
            )
    taps = Taps(residual=range(lm.layers + 1))
    hidden, (states, _) = lm.tapped(params, rows.inputs, taps)
    teacher_hidden, (teacher_states, _) = teacher.lm.tapped(teacher.params, rows.inputs, taps)
    kl = of_head(
        head_losses.KL_TO_TEACHER, lm, params, rows, teacher, states=(hidden, teacher_hidden)
    )
    error = jnp.mean(mse(states, lax.stop_gradient(teacher_states), rows.weights))
    return kl + state_weight * error, {"kl": kl, "state_mse": error}


def filtered_distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
) -> tuple[Scalar, Metrics]:
    """Mean of the forward KL to `teacher` on `retain`, and of KL(uniform ‖ student) on `forget`."""
    retain = forward_kl(lm, params, refs["teacher"], batch["retain"])
    forget = uniform_kl(lm, params, batch["forget"])
    return (retain + forget) / 2, {"retain_kl": retain, "forget_uniform_kl": forget}


def classified_distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
) -> tuple[Scalar, Metrics]:
    """Forward KL to `teacher` on `train`; on documents that are flagged KL(uniform ‖ student).

    The reference `classifier`, a `Probe`, flags documents by the states of `base`.
    """
    rows, probe = batch["train"], refs["classifier"]
    flagged = probe.lm.flags(probe.params, refs["base"], rows)  # type: ignore[attr-defined]
    retain_rows, forget_rows = (
        rows._replace(weights=jnp.where(mask, rows.weights, 0.0)) for mask in (~flagged, flagged)
    )
    kl = forward_kl(lm, params, refs["teacher"], retain_rows)
    uniform = uniform_kl(lm, params, forget_rows)
    share = jnp.sum(forget_rows.weights)
    return kl + uniform, {"kept_kl": kl, "flagged_uniform_kl": uniform, "flagged_share": share}


@every_layer
def reverse_distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key, *, temperature: Temperature = 1.0
) -> tuple[Scalar, Metrics]:
    """As `distillation`, with reverse KL, which is mode-seeking (Gu et al., arXiv 2306.08543)."""
    return reverse_kl(lm, params, refs["teacher"], batch["train"], temperature), {}


@every_layer
def jsd_distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key, *, temperature: Temperature = 1.0
) -> tuple[Scalar, Metrics]:
    """As `distillation`, with the Jensen–Shannon divergence (Agarwal et al., arXiv 2306.13649)."""
    return jsd(lm, params, refs["teacher"], batch["train"], temperature), {}


def top_k_distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key, *, k: int
) -> tuple[Scalar, Metrics]:
    """Forward KL to what is left of `teacher` if only its k likeliest tokens are stored.

    All others are one outcome, with the mass that is left: a lower bound of `distillation`, which
    asks nothing of how that mass is spread. Raises ValueError unless 0 < k < V.
    """
    vocabulary = _used(lm, refs["teacher"]) or table_shape(lm).shape[0]
    if not 0 < k < vocabulary:
        raise ValueError(f"k={k}: give a number of tokens from 1 to {vocabulary - 1}")
    return of_head(_top_k(k), lm, params, batch["train"], refs["teacher"]), {}


@cache
def _top_k(k: int) -> HeadLoss:
    def kl(z: Array, tokens: Any, y: Any) -> Array:
        log_p, log_t = jax.nn.log_softmax(z), jax.nn.log_softmax(y)
        top_log_t, places = lax.top_k(log_t, k)
        rows = jnp.arange(len(places))[:, None]
        rest_p, rest_t = (
            jax.nn.logsumexp(x.at[rows, places].set(-jnp.inf), -1) for x in (log_p, log_t)
        )
        inside = jnp.sum(jnp.exp(top_log_t) * (top_log_t - log_p[rows, places]), -1)
        return inside + jnp.exp(rest_t) * (rest_t - rest_p)

    return by_autodiff(kl)

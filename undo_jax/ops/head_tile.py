"""The head's losses on tiles of logits, as the kernels for TPU and GPU compute them on chip.

The losses with a kernel are log-sum-exp z − Σ q z + Σ q log q for a distribution q of each token:
the teacher's, one-hot at the target, or uniform. Their gradient in z is p − q. `update` accumulates
statistics over tiles (online log-sum-exp), `finish` combines the statistics of several parts of the
vocabulary, and `gradient` is the gradient in a tile's logits.

Logits, soft-caps and log-sum-exp are in bits, z · log₂ e, because chips have an instruction for
2^x, while e^x costs one more product.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from undo_jax.runtime.mesh import split_axes

TargetKind = Literal["teacher", "token", "uniform"]  # which q
NEVER = -1e30  # the logit of columns beyond the vocabulary
LOG2_E = math.log2(math.e)  # bits per nat
BOUND = 60  # bits up to which a soft-cap replaces the running maximum: 2^-120 is still a float


class TokenRows(NamedTuple):
    """A device's tokens; the teacher's states and the targets are None where q needs none."""

    hidden: Float[Array, "N D"]
    weights: Float[Array, "N 1"]
    teacher: Float[Array, "N D2"] | None = None
    targets: Int[Array, "N 1"] | None = None  # counted from the first token of `table`
    used: Int[Array, "N 1"] | None = None  # number of rows of `table` that are tokens; None: all


class Tables(NamedTuple):
    """A device's shard of the tables."""

    table: Float[Array, "V D"]
    teacher: Float[Array, "V D2"] | None = None


class HeadSpec(NamedTuple):
    """Static arguments of a kernel."""

    target: TargetKind
    softcap: float | None  # bits
    teacher_softcap: float | None
    vocabulary: int  # rows of one device's table
    total_vocabulary: int  # tokens in all devices' tables
    axes: tuple[str, ...] = ()  # mesh axes that the vocabulary is split over
    exp2: Callable[[Any], Any] = jnp.exp2
    tanh: Callable[[Any, float], Any] = lambda x, scale: jnp.tanh(scale * x)


class LogitTile(NamedTuple):
    """A tile of logits of R rows and C tokens of the vocabulary."""

    z: Float[Array, "R C"]
    y: Any  # the teacher's logits, [R, C]; None without a teacher
    valid: Any  # [R, C]: whether a column is in the vocabulary; None where all are
    is_target: Any  # [R, C]: whether a column is the row's target; None without targets


class Normalisers(NamedTuple):
    """Log-sum-exp of the logits over the whole vocabulary, in bits."""

    student: Float[Array, "R 1"]
    teacher: Float[Array, "R 1"] | None


def padded(tree: Any, size: int) -> Any:
    """Pads leaves [N, ...] with zeros until N is a multiple of `size`."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, -x.shape[0] % size), (0, 0))), tree)


def product(a: Any, b: Any, axis: int, other: int) -> Any:
    """Contracts one axis of each array, in fp32."""
    numbers = (((axis,), (other,)), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def tile(
    head: HeadSpec, first: Any, raw: tuple[Any, Any], targets: Any, ragged: bool, used: Any = None
) -> LogitTile:
    """Returns the tile of tokens from `first` on.

    A target in another device's shard may have the index of a column beyond the vocabulary's end;
    such a column never counts as the target.

    Args:
        head: Static arguments.
        first: The first token of the tile.
        raw: Products of hidden states and tables, of the student and of the teacher or None.
        targets: The targets of the tile's rows, see `TokenRows`.
        ragged: Whether some tile has columns beyond the vocabulary's end.
        used: The number of tokens, see `TokenRows`.
    """
    token = first + lax.broadcasted_iota(jnp.int32, raw[0].shape, 1)
    end = head.vocabulary if used is None else used
    valid = token < end if ragged or used is not None else None
    z = capped(head, raw[0], head.softcap, valid)
    y = None if raw[1] is None else capped(head, raw[1], head.teacher_softcap, valid)
    hit = None if targets is None else token == targets
    return LogitTile(z, y, valid, hit if hit is None or valid is None else valid & hit)


def capped(head: HeadSpec, z: Any, softcap: float | None, valid: Any) -> Any:
    """Returns soft-capped logits in bits from products; `NEVER` beyond the vocabulary."""
    z = z * LOG2_E if softcap is None else softcap * head.tanh(z, LOG2_E / softcap)
    return z if valid is None else jnp.where(valid, z, NEVER)


def start(head: HeadSpec, rows: int, lanes: int = 1) -> list[Float[Array, "R L"]]:
    """Returns initial statistics per lane: the maximum of z, Σ 2^(z − max z) and −Σ q z.

    With a teacher the third is Σ 2^(y − max y) · (y − z); max y and Σ 2^(y − max y) follow. Where a
    soft-cap bounds logits, the bound replaces the maximum. Raises ValueError for an unknown target.
    """
    if head.target not in get_args(TargetKind):
        kinds = ", ".join(get_args(TargetKind))
        raise ValueError(f"target={head.target!r}: kernels know {kinds}; this loss goes in chunks")
    fill = partial(jnp.full, (rows, lanes), dtype=jnp.float32)
    top = lambda softcap: fill(softcap if _bounded(softcap) else NEVER)  # noqa: E731
    teacher = [top(head.teacher_softcap), fill(0)] if head.target == "teacher" else []
    return [top(head.softcap), fill(0), fill(0), *teacher]


def update(head: HeadSpec, stats: list[Any], tile: LogitTile) -> list[Any]:
    """Returns statistics that include one more tile.

    A tile with as many columns as lanes is added lane by lane, another is first reduced.
    """
    z, (top, total, cross) = tile.z, stats[:3]
    over = lambda reduce, x: x if x.shape == top.shape else reduce(x, axis=1, keepdims=True)  # noqa: E731
    total_of = partial(over, jnp.sum)

    def raised(top, x, softcap):
        """Returns the new maximum and the factor that rescales sums to it."""
        if _bounded(softcap):
            return top, 1.0
        best = jnp.maximum(top, over(jnp.max, x))
        return best, head.exp2(top - best)

    best, shrunk = raised(top, z, head.softcap)
    total = total * shrunk + total_of(head.exp2(z - best))
    if head.target == "teacher":
        t_best, t_shrunk = raised(stats[3], tile.y, head.teacher_softcap)
        e = head.exp2(tile.y - t_best)
        cross = cross * t_shrunk + total_of(e * (tile.y - z))
        return [best, total, cross, t_best, stats[4] * t_shrunk + total_of(e)]
    if head.target == "token":
        return [best, total, cross - total_of(jnp.where(tile.is_target, z, 0.0))]
    z = z if tile.valid is None else jnp.where(tile.valid, z, 0.0)
    return [best, total, cross - total_of(z) / head.total_vocabulary]


def _bounded(softcap: float | None) -> bool:
    return softcap is not None and softcap <= BOUND


def finish(
    head: HeadSpec, stats: list[Float[Array, "parts R 1"]]
) -> tuple[Float[Array, "R 1"], Normalisers]:
    """Returns each row's loss in nats from the statistics of parts of the vocabulary."""
    axes = split_axes(*head.axes)

    def over_parts(top, *sums):
        """Returns the maximum over all parts, and the sums rescaled to it and added up."""
        best = lax.pmax(jnp.max(top, axis=0), axes)
        scale = jnp.exp2(top - best)
        return best, *lax.psum([jnp.sum(x * scale, axis=0) for x in sums], axes)

    best, total = over_parts(*stats[:2])
    student = best + jnp.log2(total)
    if head.target == "teacher":
        top, total, cross = over_parts(stats[3], stats[4], stats[2])
        teacher = top + jnp.log2(total)
        value = student - teacher + cross / total
    else:
        teacher, value = None, student + lax.psum(jnp.sum(stats[2], axis=0), axes)
    if head.target == "uniform":
        value = value - math.log2(head.total_vocabulary)
    return value / LOG2_E, Normalisers(student, teacher)


def gradient(head: HeadSpec, tile: LogitTile, weights: Any, normalisers: Normalisers) -> Any:
    """Returns the gradient of the weighted loss in the tile's logits before the soft-cap."""
    dz = head.exp2(tile.z - normalisers.student)
    if head.target == "teacher":
        dz -= head.exp2(tile.y - normalisers.teacher)
    elif head.target == "token":
        dz -= tile.is_target.astype(jnp.float32)
    else:
        dz -= 1 / head.total_vocabulary
    dz *= weights
    if head.softcap is not None:
        dz *= 1 - jnp.square(tile.z / head.softcap)
    return dz if tile.valid is None else jnp.where(tile.valid, dz, 0.0)

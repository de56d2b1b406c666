"""The head's losses by tiles of logits: what the kernels for TPU and GPU compute on chip.

The losses with a kernel are log-sum-exp z − Σ q z + Σ q log q for a distribution q of each token:
the teacher's, that of the one target, or the uniform one. Their gradient in z is p − q. `update`
accumulates statistics over one tile after another (online log-sum-exp), `finish` combines those of
several parts of the vocabulary, `gradient` is the gradient in a tile's logits.

Logits, soft-caps and log-sum-exp are in bits here, z · log₂ e: chips have an instruction for 2^x;
e^x costs one more product.
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

Target = Literal["teacher", "token", "uniform"]  # which q
NEVER = -1e30  # the logit of columns beyond the vocabulary
LOG2_E = math.log2(math.e)  # bits per nat
BOUND = 60  # bits up to which a soft-cap replaces the running maximum: 2^-120 is still a float


class TokenRows(NamedTuple):
    """A device's tokens, and what q depends on. Teacher or targets are None where q needs none."""

    hidden: Float[Array, "N D"]
    weights: Float[Array, "N 1"]
    teacher: Float[Array, "N D2"] | None = None
    targets: Int[Array, "N 1"] | None = None  # counted from the first token of `table`
    used: Int[Array, "N 1"] | None = None  # rows of `table` that are tokens; None: all


class Tables(NamedTuple):
    """A device's part of the vocabulary."""

    table: Float[Array, "V D"]
    teacher: Float[Array, "V D2"] | None = None


class Head(NamedTuple):
    """Static arguments of a kernel."""

    target: Target
    softcap: float | None  # bits
    teacher_softcap: float | None
    vocabulary: int  # of one device's table
    whole: int  # tokens in all devices' tables
    axes: tuple[str, ...] = ()  # mesh axes that the vocabulary is split over
    exp2: Callable[[Any], Any] = jnp.exp2
    tanh: Callable[[Any, float], Any] = lambda x, scale: jnp.tanh(scale * x)


class Tile(NamedTuple):
    """A tile of logits, and what q depends on in it."""

    z: Float[Array, "R C"]
    y: Any  # the teacher's logits, [R, C]; None without a teacher
    here: Any  # [R, C]: whether a column is in the vocabulary; None where all are
    hot: Any  # [R, C]: whether it is the target; None without targets


class Normalisers(NamedTuple):
    """Log-sum-exp of the logits over the whole vocabulary, in bits."""

    student: Float[Array, "R 1"]
    teacher: Float[Array, "R 1"] | None


def padded(tree: Any, size: int) -> Any:
    """Leaves [N, ...] with zeros added until N is a multiple of `size`."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, -x.shape[0] % size), (0, 0))), tree)


def product(a: Any, b: Any, axis: int, other: int) -> Any:
    """Contract an axis of each, in fp32."""
    numbers = (((axis,), (other,)), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def tile(
    head: Head, first: Any, raw: tuple[Any, Any], targets: Any, ragged: bool, used: Any = None
) -> Tile:
    """The tile of tokens from `first` on, of products `raw`: the student's, the teacher's or None.

    `targets` and `used` are those of the tile's rows, see `TokenRows`.

    `ragged`: whether some tile has columns beyond the vocabulary's end. A target in another
    device's vocabulary may have the index of such a column, which never counts as a target.
    """
    token = first + lax.broadcasted_iota(jnp.int32, raw[0].shape, 1)
    end = head.vocabulary if used is None else used
    here = token < end if ragged or used is not None else None
    z = capped(head, raw[0], head.softcap, here)
    y = None if raw[1] is None else capped(head, raw[1], head.teacher_softcap, here)
    hot = None if targets is None else token == targets
    return Tile(z, y, here, hot if hot is None or here is None else here & hot)


def capped(head: Head, z: Any, softcap: float | None, here: Any) -> Any:
    """Soft-capped logits in bits, from products; `NEVER` beyond the vocabulary."""
    z = z * LOG2_E if softcap is None else softcap * head.tanh(z, LOG2_E / softcap)
    return z if here is None else jnp.where(here, z, NEVER)


def start(head: Head, rows: int, lanes: int = 1) -> list[Float[Array, "R L"]]:
    """Initial statistics, in each lane: the maximum of z, Σ 2^(z − max z) and −Σ q z.

    With a teacher the third is Σ 2^(y − max y) · (y − z); max y and Σ 2^(y − max y) follow. Where a
    soft-cap bounds logits, the bound replaces the maximum. Raises ValueError for an unknown target.
    """
    if head.target not in get_args(Target):
        known = ", ".join(get_args(Target))
        raise ValueError(f"target={head.target!r}: kernels know {known}; this loss goes in chunks")
    fill = partial(jnp.full, (rows, lanes), dtype=jnp.float32)
    top = lambda softcap: fill(softcap if _bounded(softcap) else NEVER)  # noqa: E731
    teacher = [top(head.teacher_softcap), fill(0)] if head.target == "teacher" else []
    return [top(head.softcap), fill(0), fill(0), *teacher]


def update(head: Head, found: list[Any], tile: Tile) -> list[Any]:
    """`found` with one more tile: lane by lane if it has as many columns, else reduced first."""
    z, (top, total, cross) = tile.z, found[:3]
    over = lambda reduce, x: x if x.shape == top.shape else reduce(x, axis=1, keepdims=True)  # noqa: E731
    total_of = partial(over, jnp.sum)

    def raised(top, x, softcap):
        """The maximum so far, and the factor that rescales sums relative to it."""
        if _bounded(softcap):
            return top, 1.0
        best = jnp.maximum(top, over(jnp.max, x))
        return best, head.exp2(top - best)

    best, shrunk = raised(top, z, head.softcap)
    total = total * shrunk + total_of(head.exp2(z - best))
    if head.target == "teacher":
        t_best, t_shrunk = raised(found[3], tile.y, head.teacher_softcap)
        e = head.exp2(tile.y - t_best)
        cross = cross * t_shrunk + total_of(e * (tile.y - z))
        return [best, total, cross, t_best, found[4] * t_shrunk + total_of(e)]
    if head.target == "token":
        return [best, total, cross - total_of(jnp.where(tile.hot, z, 0.0))]
    z = z if tile.here is None else jnp.where(tile.here, z, 0.0)
    return [best, total, cross - total_of(z) / head.whole]


def _bounded(softcap: float | None) -> bool:
    return softcap is not None and softcap <= BOUND


def finish(
    head: Head, found: list[Float[Array, "S R 1"]]
) -> tuple[Float[Array, "R 1"], Normalisers]:
    """Each row's loss in nats, from the statistics of S parts of each device's vocabulary."""
    axes = split_axes(*head.axes)

    def over_parts(top, *sums):
        """The maximum of all parts, and sums rescaled to it from each part's own."""
        best = lax.pmax(jnp.max(top, axis=0), axes)
        scale = jnp.exp2(top - best)
        return best, *lax.psum([jnp.sum(x * scale, axis=0) for x in sums], axes)

    best, total = over_parts(*found[:2])
    student = best + jnp.log2(total)
    if head.target == "teacher":
        top, total, cross = over_parts(found[3], found[4], found[2])
        teacher = top + jnp.log2(total)
        value = student - teacher + cross / total
    else:
        teacher, value = None, student + lax.psum(jnp.sum(found[2], axis=0), axes)
    if head.target == "uniform":
        value = value - math.log2(head.whole)
    return value / LOG2_E, Normalisers(student, teacher)


def gradient(head: Head, tile: Tile, weights: Any, normalisers: Normalisers) -> Any:
    """The gradient of the weighted loss in the tile's logits before the soft-cap: [R, C]."""
    dz = head.exp2(tile.z - normalisers.student)
    if head.target == "teacher":
        dz -= head.exp2(tile.y - normalisers.teacher)
    elif head.target == "token":
        dz -= tile.hot.astype(jnp.float32)
    else:
        dz -= 1 / head.whole
    dz *= weights
    if head.softcap is not None:
        dz *= 1 - jnp.square(tile.z / head.softcap)
    return dz if tile.here is None else jnp.where(tile.here, dz, 0.0)

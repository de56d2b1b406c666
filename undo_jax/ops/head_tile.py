"""The head's losses by tiles of logits: what the kernels for TPU and GPU compute on chip.

The losses with a kernel are log-sum-exp z − Σ q z + Σ q log q for a distribution q of each token:
the teacher's, that of the one target, or the uniform one. Their gradient in z is p − q. `update`
gathers what is needed from one tile after another (online log-sum-exp), `finish` puts together what
was gathered of several parts of the vocabulary, `gradient` is that in a tile's logits.

Logits, soft-caps and log-sum-exp are in bits here, z · log₂ e: chips have 2^x, and compute e^x with
one product more.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from undo_jax.mesh import several

Target = Literal["teacher", "token", "uniform"]  # which q
NEVER = -1e30  # the logit of what is not in the vocabulary
LOG2_E = math.log2(math.e)  # bits of a nat
BOUND = 60  # bits up to which a soft-cap may stand for the greatest logit: 2^-120 is a float yet


class TokenRows(NamedTuple):
    """A device's tokens, and what q depends on. Teacher or targets are None where q needs none."""

    hidden: Float[Array, "N D"]
    weights: Float[Array, "N 1"]
    teacher: Float[Array, "N D2"] | None = None
    targets: Int[Array, "N 1"] | None = None  # counted from the first token of `table`


class Tables(NamedTuple):
    """A device's part of the vocabulary."""

    table: Float[Array, "V D"]
    teacher: Float[Array, "V D2"] | None = None


class Head(NamedTuple):
    """What is known when a kernel is made."""

    target: Target
    softcap: float | None  # bits
    teacher_softcap: float | None
    vocabulary: int  # of the table, of one device
    whole: int  # of all devices
    exp2: Callable[[Any], Any] = jnp.exp2
    tanh: Callable[[Any, float], Any] = lambda x, scale: jnp.tanh(scale * x)


class Tile(NamedTuple):
    """A tile of logits, and what of q concerns it."""

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


def tile(head: Head, first: Any, raw: tuple[Any, Any], targets: Any, ragged: bool) -> Tile:
    """The tile of tokens from `first` on; `raw` are products [R, C], the teacher's or None.

    `ragged`: whether some tile has columns behind the vocabulary's end. A token of another device's
    vocabulary may have the number of such a column: it is nobody's target.
    """
    token = first + lax.broadcasted_iota(jnp.int32, raw[0].shape, 1)
    here = token < head.vocabulary if ragged else None
    z = capped(head, raw[0], head.softcap, here)
    y = None if raw[1] is None else capped(head, raw[1], head.teacher_softcap, here)
    hot = None if targets is None else token == targets
    return Tile(z, y, here, hot if hot is None or here is None else here & hot)


def capped(head: Head, z: Any, softcap: float | None, here: Any) -> Any:
    """Soft-capped logits in bits, of products; none where there is no token."""
    z = z * LOG2_E if softcap is None else softcap * head.tanh(z, LOG2_E / softcap)
    return z if here is None else jnp.where(here, z, NEVER)


def start(head: Head, rows: int, lanes: int = 1) -> list[Float[Array, "R L"]]:
    """Before any tile, in each lane: the greatest z, Σ 2^(z − greatest) and −Σ q z.

    With a teacher the third is Σ 2^(y − greatest y) · (y − z); the greatest y and
    Σ 2^(y − greatest y) follow. Where a soft-cap bounds logits, the bound stands for the greatest.
    Raises ValueError for a target that none of these functions knows.
    """
    if head.target not in get_args(Target):
        known = ", ".join(get_args(Target))
        raise ValueError(f"target={head.target!r}: kernels know {known}; this loss goes in chunks")
    fill = partial(jnp.full, (rows, lanes), dtype=jnp.float32)
    top = lambda softcap: fill(softcap if _bounded(softcap) else NEVER)  # noqa: E731
    teacher = [top(head.teacher_softcap), fill(0)] if head.target == "teacher" else []
    return [top(head.softcap), fill(0), fill(0), *teacher]


def update(head: Head, found: list[Any], tile: Tile) -> list[Any]:
    """`found` with one more tile: lane by lane with one of as many columns, else with all of it."""
    z, (top, total, cross) = tile.z, found[:3]
    over = lambda reduce, x: x if x.shape == top.shape else reduce(x, axis=1, keepdims=True)  # noqa: E731
    total_of = partial(over, jnp.sum)

    def raised(top, x, softcap):
        """The greatest so far, and by what the sums that are relative to it shrink."""
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
    """Each row's loss in nats, from what was found in S parts of each device's vocabulary."""
    axes = several("tensor")

    def over_parts(top, *sums):
        """The greatest, and sums that were relative to each part's own."""
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
    """Of the weighted loss in the tile's products, before they are soft-capped: [R, C]."""
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

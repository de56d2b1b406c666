"""Losses of the head as values: what is computed of a chunk's logits.

`by_autodiff` makes one from a plain function of whole logits; that is all that a new loss needs.
Those here are in closed form: they work on a device's shard of the vocabulary, and
`total` and `log_softmax` reduce over all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from undo_jax.ops.head_tile import Target
from undo_jax.runtime.collectives import all_gather, shard_offset
from undo_jax.runtime.mesh import shard_count, split_axes

Axes = Sequence[str]  # of the mesh


class Tokens(NamedTuple):
    """What else a loss may read at each token. Constants: no gradient reaches them."""

    targets: Int[Array, "B T"] | None = None
    teacher: Float[Array, "B T D2"] | None = None  # its hidden states
    extra: Any = ()  # a pytree of [B, T, ...], e.g. a temperature


class Vocabulary(NamedTuple):
    """The vocabulary, of which a device has a shard."""

    axes: Axes  # of the mesh, over which it is split
    size: int  # tokens of all devices, without padding
    here: Bool[Array, " V"] | None = None  # which rows of the shard are tokens; None: all


@dataclass(frozen=True)
class HeadLoss:
    """A loss l(z) of a token's soft-capped logits z, in chunks on every device and mesh.

    `of_chunk(z, tokens, teacher, vocabulary)` gets a device's logits of a chunk, [B, T, V], the
    chunk's `Tokens`, a function that computes the teacher's logits, [B, T, V], and what the
    vocabulary is. It returns l and ∂l/∂z: [B, T] and [B, T, V]. Logits of padding are `NEVER`.

    `kernel` is the target for which the kernels for TPU and GPU compute exactly this loss (see
    `head_tile`). None: no kernel is used. Raises ValueError for an unknown target.
    """

    of_chunk: Callable[[Array, Tokens, Callable[[], Array], Vocabulary], tuple[Array, Array]]
    kernel: Target | None = None

    def __post_init__(self):
        if self.kernel is not None and self.kernel not in get_args(Target):
            known = ", ".join(get_args(Target))
            raise ValueError(f"kernel={self.kernel!r}: give one of {known}, or None for chunks")


def by_autodiff(loss: Callable[[Array, Tokens, Array | None], Array]) -> HeadLoss:
    """A head loss from a plain function; JAX differentiates it in each chunk.

    `loss(z, tokens, y)` gets logits z over the whole vocabulary, [N, V], the `Tokens` of these N
    tokens, and the teacher's logits y, [N, V], or None without a teacher; it returns [N], each
    number from its own token alone. It calls no collectives. Raises ValueError for another shape.
    """
    return HeadLoss(partial(_differentiated, loss))


# -------------------------------------------------------------------------------- in closed form


def _cross_entropy(z, tokens, _teacher, vocabulary):
    axes = vocabulary.axes
    log_p, size = log_softmax(z, axes), z.shape[-1]
    hot = jax.nn.one_hot(tokens.targets - shard_offset(size, *axes), size, dtype=z.dtype)
    return -total(hot * log_p, axes), jnp.exp(log_p) - hot


def _kl_to_teacher(z, _tokens, teacher, vocabulary):
    axes = vocabulary.axes
    return _forward(log_softmax(z, axes), log_softmax(teacher(), axes), axes)


def _kl_to_uniform(z, _tokens, _teacher, vocabulary):
    axes, size, here = vocabulary
    log_p = log_softmax(z, axes)
    counted = log_p if here is None else jnp.where(here, log_p, 0.0)
    return -total(counted, axes) / size - jnp.log(size), jnp.exp(log_p) - 1 / size


def _at_temperature(divergence, z, tokens, teacher, vocabulary):
    """τ² · divergence of softmax(z/τ) and softmax(y/τ): τ² keeps the size of the gradient."""
    axes, temperature = vocabulary.axes, tokens.extra[..., None]
    log_p, log_t = (log_softmax(x / temperature, axes) for x in (z, teacher()))
    value, gradient = divergence(log_p, log_t, axes)
    return jnp.square(tokens.extra) * value, temperature * gradient


def _forward(log_p, log_t, axes):
    t = jnp.exp(log_t)
    return total(t * (log_t - log_p), axes), jnp.exp(log_p) - t


def _reverse(log_p, log_t, axes):
    p, ratio = jnp.exp(log_p), log_p - log_t
    value = total(p * ratio, axes)
    return value, p * (ratio - value[..., None])


def _jensen_shannon(log_p, log_t, axes):
    p, log_m = jnp.exp(log_p), jnp.logaddexp(log_p, log_t) - jnp.log(2.0)
    of_p, of_t = total(p * (log_p - log_m), axes), total(jnp.exp(log_t) * (log_t - log_m), axes)
    return (of_p + of_t) / 2, p * (log_p - log_m - of_p[..., None]) / 2


CROSS_ENTROPY = HeadLoss(_cross_entropy, kernel="token")
KL_TO_TEACHER = HeadLoss(_kl_to_teacher, kernel="teacher")
KL_TO_UNIFORM = HeadLoss(_kl_to_uniform, kernel="uniform")
# of a student p and a teacher t; `extra` is the temperature
FORWARD_KL = HeadLoss(partial(_at_temperature, _forward))  # KL(t ‖ p)
REVERSE_KL = HeadLoss(partial(_at_temperature, _reverse))  # KL(p ‖ t)
JENSEN_SHANNON = HeadLoss(partial(_at_temperature, _jensen_shannon))


# ----------------------------- the vocabulary is split over mesh axes: z is a device's shard of it


def total(z: Array, axes: Axes) -> Array:
    """The sum over all of the vocabulary."""
    return lax.psum(jnp.sum(z, axis=-1), split_axes(*axes))


def log_softmax(z: Array, axes: Axes) -> Array:
    z = z - lax.pmax(jnp.max(z, axis=-1), split_axes(*axes))[..., None]
    return z - jnp.log(total(jnp.exp(z), axes))[..., None]


def _differentiated(loss, z, tokens, teacher, vocabulary):
    """`of_chunk` of a plain function.

    An all-to-all gives each device the whole vocabulary for its share of the tokens: no collective
    is differentiated, and no device repeats another's work.
    """
    axes, size, _ = vocabulary
    there, devices = split_axes(*axes), shard_count(*axes)
    count, share = z[..., 0].size, -(-z[..., 0].size // devices)

    def shares(x, kept):  # [B, T, ...] -> [tokens, ...], padded to divide the devices
        x = x.reshape(-1, *x.shape[kept:])
        return jnp.pad(x, [(0, -count % devices)] + [(0, 0)] * (x.ndim - 1))

    def own(x):  # this device's share of a replicated x
        return lax.dynamic_slice_in_dim(shares(x, 2), shard_offset(share, *axes), share)

    def exchange(x, split, joined):
        return lax.all_to_all(x, there, split, joined, tiled=True) if there else x

    whole = lambda z: exchange(shares(z, 2), 0, 1)  # noqa: E731
    y = None if tokens.teacher is None else whole(teacher())[:, :size]
    mine = jax.tree.map(own, tokens)
    value, pull = jax.vjp(lambda z: _per_token(loss, mine, y, z[:, :size]), whole(z))
    (dz,) = pull(jnp.ones_like(value))
    value, dz = all_gather(value, *axes, axis=0), exchange(dz, 1, 0)
    return value[:count].reshape(z.shape[:-1]), dz[:count].reshape(z.shape)


def _per_token(loss, tokens, y, z):
    value = loss(z, tokens, y)
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"a head loss of {z.shape[0]} tokens gave an array of shape {value.shape}: "
            "reduce over the last axis of the logits and over no other"
        )
    return value

"""Losses of the head, computed from a chunk's logits.

A new loss needs no more than `by_autodiff`, which makes one from a plain function of whole logits.
The losses in this file are in closed form: they work on a device's shard of the vocabulary, and
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

from undo_jax.ops.head_tile import TargetKind
from undo_jax.runtime.collectives import all_gather, shard_offset
from undo_jax.runtime.mesh import shard_count, split_axes

Axes = Sequence[str]  # axes of the mesh


class Tokens(NamedTuple):
    """Further inputs of a loss at each token. No gradient reaches them."""

    targets: Int[Array, "B T"] | None = None
    teacher: Float[Array, "B T D2"] | None = None  # the teacher's hidden states
    extra: Any = ()  # a pytree of [B, T, ...], e.g. a temperature


class Vocabulary(NamedTuple):
    """The vocabulary, of which a device has a shard."""

    axes: Axes  # of the mesh, over which it is split
    size: int  # tokens of all devices, without padding
    valid: Bool[Array, " V"] | None = None  # which rows of the shard are tokens; None: all


@dataclass(frozen=True)
class HeadLoss:
    """A loss l(z) of a token's soft-capped logits z, computed in chunks on any device and mesh.

    Attributes:
        of_chunk: `of_chunk(z, tokens, teacher, vocabulary)` returns l and ∂l/∂z, [B, T] and
            [B, T, V], from a device's logits of a chunk, [B, T, V], which are `NEVER` in padding,
            the chunk's `Tokens`, a function that returns the teacher's logits, [B, T, V], and the
            `Vocabulary`.
        kernel: The target for which the kernels for TPU and GPU compute exactly this loss (see
            `head_tile`); None: the loss has no kernel.

    Raises:
        ValueError: The kernel is unknown.
    """

    of_chunk: Callable[[Array, Tokens, Callable[[], Array], Vocabulary], tuple[Array, Array]]
    kernel: TargetKind | None = None

    def __post_init__(self):
        if self.kernel is not None and self.kernel not in get_args(TargetKind):
            kinds = ", ".join(get_args(TargetKind))
            raise ValueError(f"kernel={self.kernel!r}: give one of {kinds}, or None for chunks")


def by_autodiff(loss: Callable[[Array, Tokens, Array | None], Array]) -> HeadLoss:
    """Returns a head loss made from a plain function; JAX differentiates it in each chunk.

    Args:
        loss: `loss(z, tokens, y)` returns the losses of N tokens, [N], each from its own token
            alone, from logits z over the whole vocabulary, [N, V], the `Tokens` of these tokens,
            and the teacher's logits y, [N, V], or None without a teacher. It calls no collectives.
            ValueError is raised if it returns another shape.
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
    axes, size, valid = vocabulary
    log_p = log_softmax(z, axes)
    masked = log_p if valid is None else jnp.where(valid, log_p, 0.0)
    return -total(masked, axes) / size - jnp.log(size), jnp.exp(log_p) - 1 / size


def _at_temperature(divergence, z, tokens, teacher, vocabulary):
    """Returns τ² · divergence of softmax(z/τ) and softmax(y/τ); τ² keeps the gradient's size."""
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
    """Returns the sum over the whole vocabulary."""
    return lax.psum(jnp.sum(z, axis=-1), split_axes(*axes))


def log_softmax(z: Array, axes: Axes) -> Array:
    z = z - lax.pmax(jnp.max(z, axis=-1), split_axes(*axes))[..., None]
    return z - jnp.log(total(jnp.exp(z), axes))[..., None]


def _differentiated(loss, z, tokens, teacher, vocabulary):
    """Computes `HeadLoss.of_chunk` of a plain function.

    An all-to-all gives each device the whole vocabulary for its share of the tokens: no collective
    is differentiated, and no device repeats another's work.
    """
    axes, size, _ = vocabulary
    used_axes, devices = split_axes(*axes), shard_count(*axes)
    count, share = z[..., 0].size, -(-z[..., 0].size // devices)

    def flatten(x):  # [B, T, ...] -> [tokens, ...], padded to divide the devices
        x = x.reshape(-1, *x.shape[2:])
        return jnp.pad(x, [(0, -count % devices)] + [(0, 0)] * (x.ndim - 1))

    def take_share(x):  # this device's share of a replicated x
        return lax.dynamic_slice_in_dim(flatten(x), shard_offset(share, *axes), share)

    def exchange(x, split, joined):
        return lax.all_to_all(x, used_axes, split, joined, tiled=True) if used_axes else x

    # differentiate the loss of this device's tokens, over the whole vocabulary
    gather = lambda z: exchange(flatten(z), 0, 1)  # noqa: E731
    y = None if tokens.teacher is None else gather(teacher())[:, :size]
    tokens = jax.tree.map(take_share, tokens)
    value, pull = jax.vjp(lambda z: _per_token(loss, tokens, y, z[:, :size]), gather(z))
    (dz,) = pull(jnp.ones_like(value))
    # return to all tokens, over this device's shard of the vocabulary
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

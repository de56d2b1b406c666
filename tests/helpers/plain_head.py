"""The head's losses in the plainest way."""

import jax
import jax.numpy as jnp

from undo_jax.ops.head import logits


def cross_entropy(hidden, table, targets, weights, softcap=None):
    log_p = jax.nn.log_softmax(logits(hidden, table, softcap))
    return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])


def kl_to_teacher(
    hidden, table, teacher_hidden, teacher_table, weights, softcap=None, teacher_softcap=None
):
    teacher = jax.lax.stop_gradient(logits(teacher_hidden, teacher_table, teacher_softcap))
    log_p, log_t = jax.nn.log_softmax(logits(hidden, table, softcap)), jax.nn.log_softmax(teacher)
    return jnp.sum(weights * jnp.sum(jnp.exp(log_t) * (log_t - log_p), -1))


def kl_to_uniform(hidden, table, weights, softcap=None):
    log_p = jax.nn.log_softmax(logits(hidden, table, softcap))
    vocabulary = log_p.shape[-1]
    return jnp.sum(weights * jnp.sum((-jnp.log(vocabulary) - log_p) / vocabulary, -1))

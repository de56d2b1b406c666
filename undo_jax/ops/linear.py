"""Matrix products of activations and weights."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def linear(x: Float[Array, "*B I"], w: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """Returns `x @ w`, which has reverse-mode gradients only.

    On CPU the gradient of w is a product of two matrices, because XLA for CPU copies both operands
    transposed to sum over several axes. XLA for TPU and GPU does not.
    """
    return x @ w


def _forward(x, w):
    return x @ w, (x, w)


def _backward(saved, gradient):
    x, w = saved
    of_weight = lax.platform_dependent(x, gradient, cpu=of_matrices, default=of_tensors)
    return gradient @ w.T, of_weight


def of_matrices(x: Float[Array, "*B I"], gradient: Float[Array, "*B O"]) -> Float[Array, "I O"]:
    """Returns the weight's gradient, with all tokens along one axis."""
    tokens = lambda y: y.reshape(-1, y.shape[-1])  # noqa: E731
    return tokens(x).T @ tokens(gradient)


def of_tensors(x: Float[Array, "*B I"], gradient: Float[Array, "*B O"]) -> Float[Array, "I O"]:
    """Returns the weight's gradient, summed over every axis of tokens."""
    axes = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, gradient, (axes, axes))


linear.defvjp(_forward, _backward)

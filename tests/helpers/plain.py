"""A Gemma-2 decoder as plainly as can be, in jnp and in the precision of its parameters."""

import jax
import jax.numpy as jnp

from undo_jax.types import Edits


def norm(lm, x, w):
    """RMSNorm, whose weight is an offset from 1."""
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + lm.norm_epsilon) * (1 + w["norm"])


def _rotated(lm, x):
    """Pairs (i, i + H/2) turned by their angles, as complex numbers."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * lm.rope_theta ** (-jnp.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angle)[:, None]
    return jnp.concatenate([z.real, z.imag], -1)


def _attention(lm, x, w, layer):
    """Queries of a group share their keys and values; every other layer sees a window."""
    split = lambda y, heads: y.reshape(*y.shape[:2], heads, lm.head_width)  # noqa: E731
    q, group = split(x @ w["query"], lm.heads), lm.heads // lm.kv_heads
    k, v = (split(x @ w[name], lm.kv_heads) for name in ("key", "value"))
    q, k, v = _rotated(lm, q), jnp.repeat(_rotated(lm, k), group, 2), jnp.repeat(v, group, 2)
    scores = lm.attention_scale * jnp.einsum("btnh,bsnh->bnts", q, k)
    scores = lm.attention_softcap * jnp.tanh(scores / lm.attention_softcap)
    back = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])
    seen = (back >= 0) & ((back < lm.window) | (layer % 2 == 1))
    p = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bnts,bsnh->btnh", p, v).reshape(*x.shape[:2], -1) @ w["output"]


def decoder(lm, params, tokens, edits=None):
    """Final hidden states [B, T, D], every residual state (L + 1), every MLP output (L)."""
    edits, width = edits or Edits(), lm.width
    x, before = params["embedding"][tokens], 0
    if edits.prefix is not None:
        before = edits.prefix.shape[-2]
        x = jnp.concatenate([jnp.broadcast_to(edits.prefix, (len(x), before, width)), x], 1)
    x, states, made = width**0.5 * x, [], []

    def changed(x, place):
        if place in edits.remove:
            u = edits.remove[place] / jnp.sqrt(jnp.sum(edits.remove[place] ** 2))
            x = x @ (jnp.eye(width) - jnp.outer(u, u))
        if place in edits.add:
            a = edits.add[place]
            if a.ndim > 1 and a.shape[-2] > 1:  # by position: of the tokens
                return x.at[:, before:].add(a)
            return x + a
        return x

    x = changed(x, 0)
    states.append(x)
    for layer in range(lm.layers):
        w = jax.tree.map(lambda w: w[layer], params["layers"])  # noqa: B023
        y = _attention(lm, norm(lm, x, w["before_attention"]), w["attention"], layer)
        x = x + norm(lm, y, w["after_attention"])
        y, mlp = norm(lm, x, w["before_mlp"]), w["mlp"]
        gated = jax.nn.gelu(y @ mlp["gate"], approximate=True) * (y @ mlp["up"])
        made.append(gated @ mlp["down"])
        x = changed(x + norm(lm, made[-1], w["after_mlp"]), layer + 1)
        states.append(x)
    cut = lambda y: y[:, before:]  # noqa: E731
    return cut(norm(lm, x, params["final"])), [*map(cut, states)], [*map(cut, made)]

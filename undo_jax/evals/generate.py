"""Greedy or sampled generation with a key/value cache."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from undo_jax.ops import head
from undo_jax.sharding import BY_ROWS, pad_rows, place
from undo_jax.types import LM, Key, Params, Rules

WHOLE: Rules = (("", P()),)  # replicated, so that every process can read it


@partial(jax.jit, static_argnames=("lm", "new_tokens"))
def generate(
    lm: LM,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    key: Key,
    *,
    new_tokens: int,
    temperature: Float[Array, ""] | float = 0.0,
    stop: Int[Array, ""] | int | None = None,
) -> Int[Array, "B new_tokens"]:
    """The continuation of each prompt: the first `lengths` tokens of its row (at least 1).

    Temperature 0 takes the most likely token. A row's sample depends on the key and on the row's
    index, not on other rows. After `stop` a row is filled with it. B need not divide the mesh.
    Raises ValueError for less than one new token.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens={new_tokens}: write at least one")
    mesh, (count, time) = jax.sharding.get_abstract_mesh(), prompts.shape
    prompts = place(pad_rows(prompts), BY_ROWS)
    batch, end = prompts.shape[0], -1 if stop is None else stop  # -1: no token
    lengths = jnp.pad(lengths, (0, batch - count), constant_values=1)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
    params = lm.rounded(params)  # once, not for every token
    table = lm.table(params)

    def pick(hidden, step):
        """Gumbel-max sampling: argmax(logits + temperature · Gumbel noise)."""
        z = head.logits(hidden, table, lm.softcap)[:, 0]
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, step), z.shape[1:]))
        return jnp.argmax(z + temperature * noise(keys), axis=-1).astype(jnp.int32)

    def unfinished(state):
        step, _, _, _, ended = state
        return (step < new_tokens) & ~jnp.all(ended)

    def advance(state):
        step, hidden, cache, written, ended = state
        token = jnp.where(ended, end, pick(hidden, step))
        written = written.at[:, step].set(token)
        hidden, cache = lm.extend(params, cache, token[:, None], lengths + step)
        return step + 1, hidden, cache, written, ended | (token == end)

    cache = lm.empty_cache(batch, time + new_tokens)
    cache = place(cache, lm.cache_rules(mesh.shape.get("tensor", 1)))
    hidden, cache = lm.extend(params, cache, prompts, jnp.zeros_like(lengths))
    hidden = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    written = place(jnp.full((batch, new_tokens), end, jnp.int32), BY_ROWS)
    state = 0, hidden, cache, written, jnp.arange(batch) >= count
    return place(lax.while_loop(unfinished, advance, state)[3][:count], WHOLE)

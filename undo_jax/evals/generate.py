"""Greedy or sampled generation with a key/value cache."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from undo_jax.ops import head
from undo_jax.runtime.sharding import BY_ROWS, constrain, pad_rows
from undo_jax.types import LM, Cache, Key, Params, Rules, used

WHOLE: Rules = (("", P()),)  # replicated, so that every process can read it


class Writing(NamedTuple):
    """The state of generation for B rows, a multiple of the devices that split rows."""

    step: Int[Array, ""]  # tokens written so far
    hidden: Float[Array, "B 1 D"]  # at each row's last token
    cache: Cache
    written: Int[Array, "B new_tokens"]
    ended: Bool[Array, " B"]
    lengths: Int[Array, " B"]  # of the prompts


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
    stop: Int[Array, "*n"] | int | None = None,
) -> Int[Array, "B new_tokens"]:
    """Returns `new_tokens` tokens that follow each prompt.

    A row's sample depends on the key and on the row's index, not on other rows. B need not divide
    the mesh.

    Args:
        lm: The model.
        params: Its parameters.
        prompts: Rows of tokens, padded at the end.
        lengths: The number of tokens of each prompt, at least 1.
        key: The key of the samples.
        new_tokens: Tokens to write, at least 1 (else ValueError).
        temperature: 0 takes the most likely token, 1 samples.
        stop: Tokens that end a row, which is then filled with the first of them; None: none does.
    """
    params = lm.rounded(params)  # once, not for every token
    stop = -1 if stop is None else stop  # -1: no token
    state = begin(lm, params, prompts, lengths, new_tokens=new_tokens, stop=stop)
    state = advance(lm, params, state, key, new_tokens, temperature=temperature, stop=stop)
    return constrain(state.written[: len(prompts)], WHOLE)


def begin(
    lm: LM,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    *,
    new_tokens: int,
    stop: Int[Array, "*n"] | int,
) -> Writing:
    """Reads the prompts and returns the state before the first new token, see `generate`.

    The parameters are `lm.rounded`. Rows are padded to fit the mesh; padding rows have ended.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens={new_tokens}: write at least one")
    mesh, (count, time) = jax.sharding.get_abstract_mesh(), prompts.shape
    prompts = constrain(pad_rows(prompts), BY_ROWS)
    batch, end = prompts.shape[0], jnp.ravel(stop)[0]
    lengths = jnp.pad(lengths, (0, batch - count), constant_values=1)
    cache = lm.empty_cache(batch, time + new_tokens)
    cache = constrain(cache, lm.cache_rules(mesh.shape.get("tensor", 1)))
    hidden, cache = lm.extend(params, cache, prompts, jnp.zeros_like(lengths))
    hidden = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    written = constrain(jnp.full((batch, new_tokens), end, jnp.int32), BY_ROWS)
    return Writing(jnp.int32(0), hidden, cache, written, jnp.arange(batch) >= count, lengths)


def advance(
    lm: LM,
    params: Params,
    state: Writing,
    key: Key,
    until: Int[Array, ""] | int,
    *,
    temperature: Float[Array, ""] | float,
    stop: Int[Array, "*n"] | int,
) -> Writing:
    """Writes until each row has `until` new tokens, or all rows have ended. See `begin`."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(state.ended)))
    table, stop = lm.table(params), jnp.ravel(stop)

    def pick(hidden, step):
        """Samples by the Gumbel-max trick: argmax(logits + temperature · Gumbel noise)."""
        z = head.logits(hidden, table, lm.softcap)[:, 0, : used(lm)]
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, step), z.shape[1:]))
        return jnp.argmax(z + temperature * noise(keys), axis=-1).astype(jnp.int32)

    def unfinished(state):
        return (state.step < until) & ~jnp.all(state.ended)

    def write(state):
        step, hidden, cache, written, ended, lengths = state
        token = jnp.where(ended, stop[0], pick(hidden, step))
        written = written.at[:, step].set(token)
        hidden, cache = lm.extend(params, cache, token[:, None], lengths + step)
        ended |= jnp.any(token[:, None] == stop, axis=1)
        return Writing(step + 1, hidden, cache, written, ended, lengths)

    return lax.while_loop(unfinished, write, state)

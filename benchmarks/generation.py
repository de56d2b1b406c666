"""How much faster generation is with a cache: `python benchmarks/generation.py`.

Both write the same greedy tokens. Without a cache, each new token costs one forward pass over rows
of the final, padded length (jitted once, so that it is never compiled again), with logits of the
last position only. Compilation is not timed.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from undo_jax.evals.generate import generate
from undo_jax.models.gemma2 import preset
from undo_jax.ops import head

BATCH, PROMPT, NEW_TOKENS = 8, 16, 256
LM = preset("small")


def cached(params, prompts):
    lengths = jnp.full(BATCH, PROMPT)
    return generate(LM, params, prompts, lengths, jax.random.key(0), new_tokens=NEW_TOKENS)


@jax.jit
def write_next(params, tokens, length):
    last = LM.hidden(params, tokens)[:, length - 1][:, None]
    token = jnp.argmax(head.logits(last, LM.table(params), LM.softcap)[:, 0], axis=-1)
    return tokens.at[:, length].set(token)


def uncached(params, prompts):
    tokens = jnp.pad(prompts, ((0, 0), (0, NEW_TOKENS)))
    for length in range(PROMPT, PROMPT + NEW_TOKENS):
        tokens = write_next(params, tokens, length)
    return tokens[:, PROMPT:]


def timed(decode, *arguments):
    """The tokens, and the seconds that a second call takes."""
    jax.block_until_ready(decode(*arguments))
    start = time.perf_counter()
    written = jax.block_until_ready(decode(*arguments))
    return np.asarray(written), time.perf_counter() - start


def main():
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    params = jax.jit(LM.init)(jax.random.key(0))
    params["layers"]["after_mlp"]["norm"] += 5  # or the embedding would only repeat itself
    prompts = jax.random.randint(jax.random.key(1), (BATCH, PROMPT), 0, LM.vocabulary)
    slow, without = timed(uncached, params, prompts)
    fast, with_cache = timed(cached, params, prompts)
    same = f"{len(np.unique(fast))} different tokens, "
    same += "the same from both" if (slow == fast).all() else "NOT THE SAME FROM BOTH"
    rate = BATCH * NEW_TOKENS / with_cache
    print(
        f"{jax.devices()[0].device_kind}, {NEW_TOKENS} new tokens in {BATCH} rows: "
        f"{without:.2f} s without a cache, {with_cache:.2f} s with one ({rate:.0f} tokens/s): "
        f"{without / with_cache:.1f} times as fast, {same}"
    )


if __name__ == "__main__":
    main()

"""Texts that a model writes: how it goes on after prompts."""

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from undo_jax.checks import LARGEST, whole
from undo_jax.data.tokenizer_files import special_ids
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.generate import generate
from undo_jax.logs.log import console
from undo_jax.models.hf_special import listed
from undo_jax.runtime import device_memory
from undo_jax.runtime.mesh import BATCH, parts
from undo_jax.runtime.sharding import placed
from undo_jax.types import LM, Lazy, shapes


def continuations(
    lm: LM,
    load: Lazy,
    prompts: Sequence[str],
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    learnt: int | None = None,
    ends: Sequence[int] = (),
) -> list[str]:
    """What follows each prompt, which opens a document, until that ends: by a token in `ends`.

    Those of the tokenizer, if none are given.

    `load` reads the parameters, once it is known that the rest fits. Temperature 0 takes the most
    likely token, 1 samples. Says so where texts are longer than the `learnt` tokens of a row of
    training. Raises ValueError for a mistake in any of these, and where memory is short.
    """
    if not isinstance(prompts, list | tuple) or not prompts:
        raise ValueError(f"prompts={prompts!r}: give a list of texts, one at least")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"prompts: {prompt!r} is no text: give a list of texts")
    number = isinstance(temperature, int | float | np.number) and not isinstance(temperature, bool)
    if not (number and 0 <= temperature <= LARGEST):
        raise ValueError(f"temperature={temperature!r}: 0 is greedy, 1 samples; give 0 or more")
    new_tokens, seed = whole("new_tokens", new_tokens), whole("seed", seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: give a whole number from 0 to 2^32 - 1")
    tokens, lengths = _rows(prompts, tokenizer)
    count, time = tokens.shape
    _check_cache(lm, mesh, count, time, new_tokens)
    ends = list(ends) or listed(special_ids(tokenizer)["eos_token_id"])
    write = _compiled(lm, mesh, count, time, new_tokens, len(ends))
    if found := write.memory_analysis():
        needed = found.argument_size_in_bytes + found.temp_size_in_bytes
        _check(time, new_tokens, needed, mesh)
    with jax.set_mesh(mesh):
        params = load()
        if learnt is not None and time + new_tokens > learnt:
            said = f"what comes after {learnt} tokens is beyond the rows of its training"
            console.print(said, soft_wrap=True, highlight=False)
        how = {"temperature": jnp.float32(temperature), "stop": jnp.array(ends, jnp.int32)}
        written = np.asarray(write(params, tokens, lengths, jax.random.key(seed), **how))
    ids = (itertools.takewhile(lambda i: i not in ends, row) for row in written.tolist())
    return [text_of(row, tokenizer) for row in ids]


@lru_cache(maxsize=16)
def _compiled(
    lm: LM, mesh: Mesh, count: int, time: int, new_tokens: int, ends: int
) -> jax.stages.Compiled:
    """Generation for `count` prompts of at most `time` tokens; its parameters need not be there."""
    given = (
        placed(shapes(lm), lm.rules, mesh),
        jax.ShapeDtypeStruct((count, time), jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.eval_shape(partial(jax.random.key, 0)),
    )
    how = {
        "temperature": jax.ShapeDtypeStruct((), jnp.float32),
        "stop": jax.ShapeDtypeStruct((ends,), jnp.int32),
    }
    with jax.set_mesh(mesh):
        return generate.lower(lm, *given, new_tokens=new_tokens, **how).compile()


def _check_cache(lm: LM, mesh: Mesh, count: int, time: int, new_tokens: int) -> None:
    """Raises ValueError for more tokens than these devices could hold."""
    if new_tokens < 1 or time + new_tokens >= 2**31:
        raise ValueError(f"new_tokens={new_tokens}: write at least one, and fewer than 2^31")
    rows = -(-count // parts(*BATCH, mesh=mesh))
    cache = jax.tree.leaves(jax.eval_shape(partial(lm.empty_cache, rows, 1)))
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in cache) / mesh.shape["tensor"]
    _check(time, new_tokens, each * (time + new_tokens), mesh)


def _check(time: int, new_tokens: int, needed: float, mesh: Mesh) -> None:
    what = f"new_tokens={new_tokens} after a prompt of {time} tokens"
    device_memory.check(what, needed, device_memory.of_device(mesh), "each device's memory")


def _rows(prompts: Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Each prompt as a document that has begun, padded to the longest; and their lengths."""
    encoded = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    tokens = np.full((len(prompts), lengths.max()), tokenizer.bos_id, np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    return tokens, lengths


def text_of(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Ids that the tokenizer does not have, e.g. of an untrained model, become U+FFFD."""
    runs = itertools.groupby(ids, lambda i: i < tokenizer.vocab_size)
    return "".join(
        tokenizer.decode(run) if known else "\N{REPLACEMENT CHARACTER}" * len(list(run))
        for known, run in runs
    )

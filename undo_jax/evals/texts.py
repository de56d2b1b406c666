"""Texts that a model writes after prompts."""

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
from undo_jax.evals.requests import prompts as padded_rows
from undo_jax.logs.log import console
from undo_jax.models.hf_special import listed
from undo_jax.runtime import device_memory
from undo_jax.runtime.mesh import BATCH, shard_count
from undo_jax.runtime.sharding import with_shardings
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
    """Returns the text that follows each prompt, which opens a document.

    Args:
        lm: The model.
        load: Loads its parameters, after all other arguments are checked.
        prompts: The beginnings of documents.
        tokenizer: The model's tokenizer.
        mesh: The devices.
        new_tokens: Tokens to write at most.
        temperature: 0 takes the most likely token, 1 samples.
        seed: The seed of the samples.
        learnt: Tokens of a row of training; a note is printed if texts are longer.
        ends: Tokens that end a document; empty: those of the tokenizer.

    Raises:
        ValueError: An argument is invalid, or memory is short.
    """
    # check the arguments
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
    contexts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    tokens, lengths = padded_rows(contexts, len(contexts))
    count, time = tokens.shape
    _check_cache(lm, mesh, count, time, new_tokens)
    # compile, and check memory again, before parameters are loaded
    ends = list(ends) or listed(special_ids(tokenizer)["eos_token_id"])
    write = _compiled(lm, mesh, count, time, new_tokens, len(ends))
    if usage := write.memory_analysis():
        needed = usage.argument_size_in_bytes + usage.temp_size_in_bytes
        _check_memory(time, new_tokens, needed, mesh)
    with jax.set_mesh(mesh):
        params = load()
        if learnt is not None and time + new_tokens > learnt:
            message = f"what comes after {learnt} tokens is beyond the rows of its training"
            console.print(message, soft_wrap=True, highlight=False)
        options = {"temperature": jnp.float32(temperature), "stop": jnp.array(ends, jnp.int32)}
        written = np.asarray(write(params, tokens, lengths, jax.random.key(seed), **options))
    ids = (itertools.takewhile(lambda i: i not in ends, row) for row in written.tolist())
    return [text_of(row, tokenizer) for row in ids]


@lru_cache(maxsize=16)
def _compiled(
    lm: LM, mesh: Mesh, count: int, time: int, new_tokens: int, ends: int
) -> jax.stages.Compiled:
    """Compiles generation for `count` prompts of at most `time` tokens, without parameters."""
    arguments = (
        with_shardings(shapes(lm), lm.rules, mesh),
        jax.ShapeDtypeStruct((count, time), jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.eval_shape(partial(jax.random.key, 0)),
    )
    options = {
        "temperature": jax.ShapeDtypeStruct((), jnp.float32),
        "stop": jax.ShapeDtypeStruct((ends,), jnp.int32),
    }
    with jax.set_mesh(mesh):
        return generate.lower(lm, *arguments, new_tokens=new_tokens, **options).compile()


def _check_cache(lm: LM, mesh: Mesh, count: int, time: int, new_tokens: int) -> None:
    """Raises ValueError for more tokens than fit into these devices' memory."""
    if new_tokens < 1 or time + new_tokens >= 2**31:
        raise ValueError(f"new_tokens={new_tokens}: write at least one, and fewer than 2^31")
    rows = -(-count // shard_count(*BATCH, mesh=mesh))
    cache = jax.tree.leaves(jax.eval_shape(partial(lm.empty_cache, rows, 1)))
    per_token = sum(leaf.size * leaf.dtype.itemsize for leaf in cache) / mesh.shape["tensor"]
    _check_memory(time, new_tokens, per_token * (time + new_tokens), mesh)


def _check_memory(time: int, new_tokens: int, needed: float, mesh: Mesh) -> None:
    subject = f"new_tokens={new_tokens} after a prompt of {time} tokens"
    available = device_memory.device_bytes(mesh)
    device_memory.check_fits(subject, needed, available, "each device's memory")


def text_of(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Decodes ids; those that the tokenizer does not have, e.g. as padding, become U+FFFD."""
    runs = itertools.groupby(ids, lambda i: i < tokenizer.vocab_size)
    return "".join(
        tokenizer.decode(run) if in_vocabulary else "\N{REPLACEMENT CHARACTER}" * len(list(run))
        for in_vocabulary, run in runs
    )

"""A model on the devices of all processes, which answers requests of process 0.

Process 0 sends the arrays of each request to the other processes, which `follow`, so that all run
the same program.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from undo_jax.evals import generate
from undo_jax.evals.generate import WHOLE, Writing
from undo_jax.ops import head
from undo_jax.runtime import processes
from undo_jax.runtime.mesh import BATCH, shard_count
from undo_jax.runtime.sharding import BY_ROWS, constrain
from undo_jax.types import LM, Params, used

KINDS = "end", "score", "begin", "advance"
MOST = 4  # arrays of a request
PART = 32  # tokens that are written before texts are checked for their end


@partial(jax.jit, static_argnames=("lm",))
def score(
    lm: LM,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B Q"],
    targets: Int[Array, "B Q"],
) -> tuple[Float[Array, "B Q"], Bool[Array, "B Q"]]:
    """Returns log p(target) after the token at each position, and whether it is the likeliest."""
    hidden = lm.hidden(params, constrain(tokens, BY_ROWS))
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    table, options = lm.table(params), {"softcap": lm.softcap, "used": used(lm)}
    log_p = head.log_probabilities(hidden, table, targets, **options)
    best = head.greedy(hidden, table, **options) == targets
    return constrain((log_p, best), WHOLE)


begin = jax.jit(generate.begin, static_argnames=("lm", "new_tokens"))


@partial(jax.jit, static_argnames=("lm",), donate_argnames=("state",))
def advance(
    lm: LM,
    params: Params,
    state: Writing,
    key: Any,
    until: Any,
    temperature: Any,
    stop: Any,
    ended: Any,
) -> tuple[Writing, Any]:
    """Writes the next tokens, see `evals.generate`; rows flagged in `ended` stop.

    Returns the state, the tokens written so far, and which rows have ended.
    """
    state = state._replace(ended=state.ended | ended)
    state = generate.advance(lm, params, state, key, until, temperature=temperature, stop=stop)
    return state, constrain((state.written, state.ended), WHOLE)


class Served:
    """A model whose rounded parameters are sharded over a mesh: process 0 asks, others follow."""

    def __init__(self, lm: LM, params: Params, mesh: Mesh):
        self.lm, self.params, self.mesh = lm, params, mesh
        self._writing: Any = None  # arguments and state of the generation that `begin` started

    def rows(self, least: int) -> int:
        """Returns the number of rows of a batch: at least `least`, and split evenly by the mesh."""
        shards = shard_count(*BATCH, mesh=self.mesh)
        return -(-least // shards) * shards

    def score(self, tokens: Any, positions: Any, targets: Any) -> tuple[Any, Any]:
        """Scores rows, see `score`. For process 0."""
        return self._request("score", tokens, positions, targets)

    def write(
        self,
        prompts: Any,
        lengths: Any,
        new_tokens: int,
        stop: Any,
        enough: Callable[[int, list[int]], bool],
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Returns the continuation of each prompt, without the `stop` token. For process 0.

        A row stops when `enough(row, tokens)` is true. The number of rows must be one that `rows`
        returns.
        """
        numbers = [new_tokens, seed, np.float32(temperature).view(np.int32)]
        self._request("begin", prompts, lengths, np.ravel(stop), numbers)
        ended, texts = np.zeros(len(prompts), np.int32), []
        ends = set(np.ravel(stop).tolist())
        for first in range(0, new_tokens, PART):
            until = min(first + PART, new_tokens)
            written, stopped = self._request("advance", ended, [until])
            rows = [row[:until].tolist() for row in written]
            texts = [list(itertools.takewhile(lambda i: i not in ends, row)) for row in rows]
            ended = np.array([enough(i, text) for i, text in enumerate(texts)], np.int32)
            if np.all(stopped | (ended > 0)):
                break
        self._writing = None  # frees the cache
        return texts

    def end(self) -> None:
        """Ends the loops of the other processes. For process 0."""
        self._send("end", [])

    def follow(self) -> None:
        """Takes part in the requests of process 0 until it ends. For the other processes."""
        while (request := self._receive())[0] != "end":
            self._run(*request)

    def _request(self, kind: str, *arrays: Any) -> Any:
        whole = [np.asarray(array, np.int32) for array in arrays]
        self._send(kind, whole)
        return self._run(kind, whole)

    def _run(self, kind: str, arrays: Sequence[Any]) -> Any:
        with jax.set_mesh(self.mesh):
            if kind == "score":
                return jax.tree.map(np.asarray, score(self.lm, self.params, *arrays))
            if kind == "begin":
                prompts, lengths, stop, (new_tokens, seed, temperature) = arrays
                state = begin(
                    self.lm, self.params, prompts, lengths, new_tokens=int(new_tokens), stop=stop
                )
                temperature = np.int32(temperature).view(np.float32)
                self._writing = state, jax.random.key(seed), temperature, stop
                return None
            state, key, temperature, stop = self._writing
            ended, (until,) = arrays
            state, written = advance(
                self.lm, self.params, state, key, until, temperature, stop, ended > 0
            )
            self._writing = state, key, temperature, stop
            return jax.tree.map(np.asarray, written)

    def _send(self, kind: str, arrays: Sequence[Any]) -> None:
        """Sends the kind of a request and the shapes of its arrays, and then the arrays."""
        shapes = np.zeros((MOST + 1, 2), np.int32)
        shapes[0] = KINDS.index(kind), len(arrays)
        for shape, array in zip(shapes[1:], arrays, strict=False):
            shape[:] = (array.shape + (-1,))[:2]
        for array in (shapes, *arrays):
            processes.agree_on(array)

    def _receive(self) -> tuple[str, list[Any]]:
        """Receives what `_send` sends."""
        (kind, count), *shapes = processes.agree_on(np.zeros((MOST + 1, 2), np.int32)).tolist()
        sizes = [[size for size in shape if size >= 0] for shape in shapes[:count]]
        return KINDS[kind], [processes.agree_on(np.zeros(size, np.int32)) for size in sizes]

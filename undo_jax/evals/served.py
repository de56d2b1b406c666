"""A model on the devices of all processes that answers what process 0 asks.

Process 0 knows the questions. It sends each as arrays to the others, which `follow`, so that all
run the same program.
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
MOST = 4  # arrays of a question
PART = 32  # tokens that are written until the next look at the texts


@partial(jax.jit, static_argnames=("lm",))
def score(
    lm: LM,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B Q"],
    targets: Int[Array, "B Q"],
) -> tuple[Float[Array, "B Q"], Bool[Array, "B Q"]]:
    """log p(target) after the token at each position, and whether no other is more likely."""
    hidden = lm.hidden(params, constrain(tokens, BY_ROWS))
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    table, words = lm.table(params), {"softcap": lm.softcap, "used": used(lm)}
    log_p = head.log_probabilities(hidden, table, targets, **words)
    best = head.greedy(hidden, table, **words) == targets
    return constrain((log_p, best), WHOLE)


@partial(jax.jit, static_argnames=("lm", "new_tokens"))
def begin(lm: LM, params: Params, prompts: Any, lengths: Any, stop: Any, new_tokens: int) -> Any:
    """See `evals.generate`."""
    return generate.begin(lm, params, prompts, lengths, new_tokens=new_tokens, stop=stop)


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
    """See `evals.generate`; rows that have `ended` end. Also what is written, and which end."""
    state = state._replace(ended=state.ended | ended)
    state = generate.advance(lm, params, state, key, until, temperature=temperature, stop=stop)
    return state, constrain((state.written, state.ended), WHOLE)


class Served:
    """Parameters, `lm.rounded`, sharded over a mesh; process 0 asks, and the others follow."""

    def __init__(self, lm: LM, params: Params, mesh: Mesh):
        self.lm, self.params, self.mesh = lm, params, mesh
        self._writing: Any = None  # what `begin` has been given and made

    def rows(self, wanted: int) -> int:
        """The number of rows of a batch: at least `wanted`, and what the mesh splits evenly."""
        shards = shard_count(*BATCH, mesh=self.mesh)
        return -(-wanted // shards) * shards

    def score(self, tokens: Any, positions: Any, targets: Any) -> tuple[Any, Any]:
        """On process 0: see `score`."""
        return self._ask("score", tokens, positions, targets)

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
        """On process 0: what follows each prompt, without the token of `stop` that ends it.

        Of a row for which `enough(row, tokens)` no more is written. The rows must be as many as
        `rows` says.
        """
        numbers = [new_tokens, seed, np.float32(temperature).view(np.int32)]
        self._ask("begin", prompts, lengths, np.ravel(stop), numbers)
        ended, texts = np.zeros(len(prompts), np.int32), []
        for first in range(0, new_tokens, PART):
            until = min(first + PART, new_tokens)
            written, stopped = self._ask("advance", ended, [until])
            texts = [_before(row[:until].tolist(), stop) for row in written]
            ended = np.array([enough(i, text) for i, text in enumerate(texts)], np.int32)
            if np.all(stopped | (ended > 0)):
                break
        self._writing = None  # frees the cache
        return texts

    def end(self) -> None:
        """On process 0: there is nothing more to ask."""
        self._tell("end", [])

    def follow(self) -> None:
        """On the others: take part in what process 0 asks, until it ends."""
        while (heard := self._hear())[0] != "end":
            self._do(*heard)

    def _ask(self, kind: str, *arrays: Any) -> Any:
        whole = [np.asarray(array, np.int32) for array in arrays]
        self._tell(kind, whole)
        return self._do(kind, whole)

    def _do(self, kind: str, arrays: Sequence[Any]) -> Any:
        with jax.set_mesh(self.mesh):
            if kind == "score":
                return jax.tree.map(np.asarray, score(self.lm, self.params, *arrays))
            if kind == "begin":
                prompts, lengths, stop, (new_tokens, seed, temperature) = arrays
                state = begin(self.lm, self.params, prompts, lengths, stop, int(new_tokens))
                how = jax.random.key(seed), np.int32(temperature).view(np.float32), stop
                self._writing = how, state
                return None
            (key, temperature, stop), state = self._writing
            ended, (until,) = arrays
            state, told = advance(
                self.lm, self.params, state, key, until, temperature, stop, ended > 0
            )
            self._writing = (key, temperature, stop), state
            return jax.tree.map(np.asarray, told)

    def _tell(self, kind: str, arrays: Sequence[Any]) -> None:
        """What the others hear: the kind and the arrays' shapes, and then the arrays."""
        shapes = np.zeros((MOST + 1, 2), np.int32)
        shapes[0] = KINDS.index(kind), len(arrays)
        for shape, array in zip(shapes[1:], arrays, strict=False):
            shape[:] = (array.shape + (-1,))[:2]
        for array in (shapes, *arrays):
            processes.agree_on(array)

    def _hear(self) -> tuple[str, list[Any]]:
        (kind, count), *shapes = processes.agree_on(np.zeros((MOST + 1, 2), np.int32)).tolist()
        sizes = [[size for size in shape if size >= 0] for shape in shapes[:count]]
        return KINDS[kind], [processes.agree_on(np.zeros(size, np.int32)) for size in sizes]


def _before(tokens: list[int], stop: Any) -> list[int]:
    ends = set(np.ravel(stop).tolist())
    return list(itertools.takewhile(lambda token: token not in ends, tokens))

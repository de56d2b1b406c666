"""A teacher's hidden states, computed once for all of its students (docs/decisions/0012-cache.md).

WORKDIR/states-TEACHER-FINGERPRINT/   of one teacher on one array of rows, see `data.states`
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.data.row_files import StoredRows
from undo_jax.data.states import (
    MANIFEST,
    StatesSpec,
    finish_states,
    open_states,
    unwritten,
    write_file,
)
from undo_jax.fit.cached import TEACHER, per_token, possible
from undo_jax.graph.model_graph import ModelNode, train_spec
from undo_jax.graph.recipe import Recipe, TrainedRecipe
from undo_jax.logs.log import console, show_waiting
from undo_jax.models.head_only import HeadOnly, states_like
from undo_jax.runner.run_context import RunContext, trained_recipe
from undo_jax.runtime.compiler import jit_on
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.runtime.mesh import BATCH, shard_count
from undo_jax.runtime.preemption import defer_signals
from undo_jax.runtime.processes import agree_on, barrier
from undo_jax.setting import Setting
from undo_jax.store.array_digest import digest
from undo_jax.training.population import TrialInputs
from undo_jax.training.programs import TrainSpec, over_slots
from undo_jax.types import LM, Params

ROWS = 16  # computed at once on a device, at least


class CacheSavings(NamedTuple):
    """What a teacher's stored states would change."""

    share: float  # of a training's FLOPs that are left, storing them included
    bytes: float  # of the states


def estimate_savings(
    run: RunContext, group: Sequence[ModelNode], spec: TrainSpec, steps: float
) -> CacheSavings | None:
    """Returns what storing would save models that take `steps` in all; None if it saves nothing.

    Raises what the setting's streams raise.
    """
    token = per_token(spec)
    if token is None:
        return None
    streams = {run.setting.stream(s.name, 1, 0) for s in trained_recipe(group[0]).streams.values()}
    if not all(hasattr(stream, "sources") for stream in streams):
        return None
    rows = sum(len(source.tokens) for stream in streams for source in stream.sources)
    teachers = {model.parent(trained_recipe(model).references[TEACHER]) for model in group}
    tokens = len(teachers) * rows * spec.row_length
    before = steps * spec.tokens * token.beside
    after = steps * spec.tokens * token.stored + tokens * token.storing
    return CacheSavings(after / before, tokens * token.bytes) if after < before else None


def check_streams(recipe: Recipe, setting: Setting) -> None:
    """Raises ValueError for a student whose streams are not made by `undo_jax.data.streams`."""
    if not (isinstance(recipe, TrainedRecipe) and possible(train_spec(recipe, setting))):
        return
    for stream in recipe.streams.values():
        if not hasattr(setting.stream(stream.name, 1, 0), "with_states"):
            raise ValueError(
                f"the setting's stream {stream.name} does not say which rows it has, so that a "
                "teacher's states cannot be stored: make it by undo_jax.data.streams, or leave "
                "out --cache-teachers"
            )


def use_stored_states(
    run: RunContext, inputs: TrialInputs, references: Mapping[str, ModelNode]
) -> TrialInputs:
    """Returns the inputs with the teacher's states in the rows, and with only the teacher's head.

    States that are not stored yet are computed. Raises what `open_states` raises.
    """
    teacher, (lm, load) = references[TEACHER], inputs.refs[TEACHER]
    params, head = load(), HeadOnly(lm)
    stored = partial(_stored, run, teacher, lm, params, digest(params))
    streams = {
        name: stream.with_states([stored(source.tokens) for source in stream.sources])
        for name, stream in inputs.streams.items()
    }
    head_params = jax.jit(head.head)(params)
    return TrialInputs(streams, {**inputs.refs, TEACHER: (head, lambda: head_params)})


def _stored(
    run: RunContext, teacher: ModelNode, lm: LM, params: Params, parameters: str, rows: Any
) -> StoredRows:
    """The teacher's states of rows, [R, T, D]; `parameters` is the digest of `params`."""
    like = states_like(lm, (len(rows), rows.shape[1] - 1))
    count, length, width = like.shape
    about = StatesSpec(
        teacher.artifact.fingerprint, parameters, _hash(rows), count, length, width, str(like.dtype)
    )
    folder = teacher.artifact.workdir / f"states-{teacher.artifact.slug}-{about.fingerprint}"
    if not agree_on((folder / MANIFEST).exists()):
        _store(run, teacher, lm, params, rows, about, folder)
    return open_states(folder, about)


def _store(
    run: RunContext,
    teacher: ModelNode,
    lm: LM,
    params: Params,
    rows: Any,
    about: StatesSpec,
    folder: epath.Path,
) -> None:
    """Write the files that are not written yet. Stops between two files if asked to."""
    label = f"storing states of {teacher.artifact.model}, seed {teacher.artifact.seed}"
    size = f"{about.count:,} rows, {format_bytes(about.count * about.row_bytes)}"
    console.print(f"{label}: {size}, in {folder.name}", soft_wrap=True)
    left, hidden = agree_on(unwritten(folder, about)), _program(lm, run)
    with defer_signals() as stop, show_waiting(label):
        for number, (first, end) in enumerate(about.files):
            blocks = _blocks(run, hidden, params, rows, first, end)
            if left[number] and jax.process_index() == 0:
                write_file(folder, number, blocks)
            elif left[number]:
                all(True for _ in blocks)  # computes along
            if stop.is_requested():
                stop.leave("after a file of states")
    if jax.process_index() == 0:
        finish_states(folder, about)
    barrier(f"states {folder.name}")


def _program(lm: LM, run: RunContext) -> Any:
    """(blocks of tokens [M, b, T], params) -> their states [M, b, T, D], on every process."""

    def of_block(tokens: Any, params: Params) -> Any:
        return lm.hidden(lm.rounded(params), tokens)

    everywhere = NamedSharding(run.mesh, P())
    return jit_on(run.mesh)(over_slots(of_block, run.mesh), out_shardings=everywhere)


def _blocks(
    run: RunContext, hidden: Any, params: Params, rows: Any, first: int, end: int
) -> Iterator[np.ndarray]:
    """States of rows first..end-1, [n, T, D] each; one block is computed while one is written."""
    shards, sweep = shard_count(*BATCH, mesh=run.mesh), run.mesh.shape["sweep"]
    size, place = -(-ROWS // shards) * shards, NamedSharding(run.mesh, P("sweep", BATCH))
    before: tuple[Any, int] | None = None
    for at in range(first, end, sweep * size):
        tokens = rows[np.arange(at, min(at + sweep * size, end))][:, :-1]
        padding = [(0, sweep * size - len(tokens)), (0, 0)]
        block = np.pad(tokens, padding).astype(np.int32).reshape(sweep, size, -1)
        now = hidden(jax.device_put(jnp.asarray(block), place), params), len(tokens)
        if before is not None:
            yield _fetched(*before)
        before = now
    if before is not None:
        yield _fetched(*before)


def _fetched(states: Any, count: int) -> np.ndarray:
    array = np.asarray(states)
    return array.reshape(-1, *array.shape[2:])[:count]


def _hash(rows: Any) -> str:
    """Hash of rows: their own, or that of their bytes."""
    stored_digest = getattr(rows, "digest", None)
    return stored_digest or hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()

"""The arguments of the compiled step: batches and stacked models, as arrays or as shapes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.models.head_only import states_like
from undo_jax.runtime.mesh import BATCH
from undo_jax.runtime.sharding import assemble_batch, shardings, with_shardings
from undo_jax.training.programs import Programs, TrainSpec, stacked_shapes
from undo_jax.types import LM, Packed, Params, shapes


def read_batch(
    streams: Sequence[Mapping[str, Any]], step: int, spec: TrainSpec, mesh: Mesh
) -> dict[str, jax.Array | Packed]:
    """Reads batch `step` of all streams; each process reads its own rows.

    Args:
        streams: the streams of each of the population's inputs, by name. One that several inputs
            have is read once.
        step: the number of the batch.
        spec: what the step depends on.
        mesh: the devices.

    Returns:
        The batch of each stream, [inputs, B, T+1].

    Raises:
        ValueError: for streams whose rows do not have exactly the fields `batch_fields`.
    """

    def stacked(name: str, rows: slice) -> Any:
        named = [by_name[name] for by_name in streams]
        batches = {key: stream[step, rows] for key, stream in {id(s): s for s in named}.items()}
        for batch in batches.values():
            check_batch_fields(name, batch, spec.batch_fields)
        return jax.tree.map(lambda *x: np.stack(x), *(batches[id(stream)] for stream in named))

    size = spec.training.batch_size
    return {name: assemble_batch(mesh, size, partial(stacked, name)) for name in streams[0]}


def check_batch_fields(name: str, rows: Any, batch_fields: Sequence[str]) -> None:
    """Raises ValueError for rows of a stream whose fields are not those that are declared."""
    optional = Packed._fields[1:] if isinstance(rows, Packed) else ()
    if {field for field in optional if getattr(rows, field) is not None} != {*batch_fields}:
        declared = " and ".join(batch_fields) or "nothing"
        raise ValueError(
            f"the stream {name} does not have the fields beside tokens that batch_fields of the "
            f"setting names, {declared}: make them agree"
        )


def stack_references(lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    """Returns reference models, rounded and stacked on a new replicated axis."""
    return _stack(partial(_join_rounded, lm), lm, trees, mesh)


def stack_inits(lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    """Returns the models that trials start from, unrounded, stacked on a new replicated axis."""
    return _stack(lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), lm, trees, mesh)


def _stack(join: Callable[..., Params], lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    places = shardings(jax.eval_shape(join, *trees), lm.rules, mesh, (None,))
    return jax.jit(join, out_shardings=places)(*trees)


def _join_rounded(lm: LM, *trees: Params) -> Params:
    """Stacks parameters and rounds them once, not in every step."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(lm.rounded, trees))


def argument_shapes(
    programs: Programs, spec: TrainSpec, mesh: Mesh, inputs: int = 1, inits: int | None = None
) -> tuple[Any, Any, Any]:
    """Returns the arguments of `programs.advance` as shapes and shardings.

    Args:
        programs: the programs.
        spec: what the step depends on.
        mesh: the devices.
        inputs: the number of `TrialInputs`, each with its own references and streams.
        inits: how many different parameters trials start from; None unless the programs share
            frozen parameters.
    """
    slots = programs.states.step.shape[0]
    index, active = jax.eval_shape(lambda: (jnp.zeros(slots, int), jnp.ones(slots, bool)))
    place = NamedSharding(mesh, P(None, BATCH))

    def reference(lm: LM):
        stacked = jax.eval_shape(partial(_join_rounded, lm), *[shapes(lm)] * inputs)
        return with_shardings(stacked, lm.rules, mesh, (None,))

    lead = (inputs, spec.training.batch_size)
    packed = packed_like(lead, spec.row_length, spec.batch_fields, spec.refs)
    packed = jax.tree.map(lambda x: x.update(sharding=place), packed)
    batch = dict.fromkeys(spec.streams, packed if spec.batch_fields else packed.tokens)
    references = {name: reference(lm) for name, lm in spec.refs.items()}
    if inits is None:
        return programs.states, (index, active, programs.loss_kwargs), (references, batch)
    stacked = with_shardings(stacked_shapes(spec.lm, inits), spec.lm.rules, mesh, (None,))
    per_slot = (index, index), active, programs.loss_kwargs
    return programs.states, per_slot, (references, batch, stacked)


def packed_like(
    lead: tuple[int, ...], time: int, batch_fields: Collection[str], refs: Mapping[str, LM]
) -> Packed:
    """Returns rows [*lead, T + 1] as shapes, with the fields in `batch_fields` beside tokens."""
    shape = (*lead, time + 1)
    leaves = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "weights": jax.ShapeDtypeStruct(shape, jnp.float32),
        "segments": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    if "states" in batch_fields:
        leaves["states"] = states_like(refs["teacher"], (*lead, time))
    return Packed(**{name: leaves[name] for name in ("tokens", *batch_fields)})

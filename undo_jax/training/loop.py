"""The training loop of a population, with its evaluations and saves."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.logs.log import Log
from undo_jax.runtime.mesh import check_batch
from undo_jax.runtime.sharding import shardings
from undo_jax.store.train_checkpoints import TrainCheckpoints
from undo_jax.training.arguments import read_batch
from undo_jax.training.meter import Meter
from undo_jax.training.optim import Trains, pick
from undo_jax.training.population import Population, Slots, TrialResult
from undo_jax.training.programs import over_sweep
from undo_jax.training.train_step import State
from undo_jax.types import LM, Params, Scores, shapes

SLOTS = "lanes"  # key of a save's notes: the trial of each slot, -1 for an empty one

# called at every evaluation with its step, and the results of the trials that were evaluated
OnEvaluation = Callable[[int, Mapping[int, TrialResult]], None]


def train_together(
    population: Population,
    log: Log,
    saves: TrainCheckpoints | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> list[TrialResult]:
    """Trains every trial until its stop rule holds at an evaluation, or to the last step.

    A trial whose scores are not finite stops, too: it cannot recover.

    Args:
        population: the trials, and their programs.
        log: takes the records.
        saves: the checkpoints of this training. It resumes from the last one. Evaluations since
            that one call `on_evaluation` again.
        on_evaluation: called at every evaluation.

    Returns:
        The results, in the order of the trials.

    Raises:
        ValueError: if the mesh does not divide the batch, and what `Saves.between` raises.
    """
    spec, mesh, slots = population.spec, population.mesh, population.slots
    training = spec.training
    check_batch(mesh, training.batch_size, training.accumulation)
    loop = _resume(saves, population.state_shapes, slots, log) if saves else None
    loop = loop or Loop(0, population.initialise(), slots.is_taken, {})
    streams = [inputs.streams for inputs in slots.inputs]
    meter = Meter(log, slots.trial_indices)
    take = make_take(spec.lm, mesh, spec.trains if population.shares_frozen else None)
    while True:
        if saves:
            saves.save_if_due(loop.step, lambda: loop.capture(meter))
        if loop.step % training.eval_every == 0 or loop.step == training.steps:
            evaluated = _evaluate(population, loop, meter)
            if on_evaluation and evaluated:
                on_evaluation(loop.step, _results(population, loop, take, evaluated))
        if not loop.active.any():
            break
        batch = read_batch(streams, loop.step, spec, mesh)
        loop.states, metrics = population.advance(loop.states, batch, loop.active)
        loop.step += 1
        meter.step(loop.step, loop.active, metrics, batch)
    if saves:
        saves.save_at_end(loop.step, lambda: loop.capture(meter))
    return [*_results(population, loop, take, range(len(population.trials))).values()]


def _results(
    population: Population,
    loop: "Loop",
    take: Any,
    indices: Iterable[int],
) -> Mapping[int, TrialResult]:
    """Returns the present results of some trials, by their indices.

    Call `params` of those that train on before their next step.
    """
    steps, params = _fetch(loop.states.step, population.mesh), loop.states.params

    def take_slot(slot: int) -> Params:
        # one at a time: two programs with collectives at once on CPU devices may deadlock, each
        # waiting for devices that are in the other
        state_params = jax.block_until_ready(take(params, slot))
        return jax.block_until_ready(population.complete_params(state_params, slot))

    slots = {index: population.slots.trial_indices.index(index) for index in indices}
    return {
        index: TrialResult(
            population.trials[index], partial(take_slot, slot), int(steps[slot]), loop.scores[index]
        )
        for index, slot in slots.items()
    }


@dataclass
class Loop:
    """Where a training loop stands between two steps."""

    step: int
    states: State  # [M, ...], of every slot
    active: np.ndarray  # whether each slot still trains
    scores: dict[int, Scores]  # by the index of the trial, of its last evaluation

    def capture(self, meter: Meter) -> tuple[State, dict[str, Any]]:
        """Returns all that `_resume` needs, as arrays and JSON."""
        meter.flush()
        notes = {
            SLOTS: list(meter.trial_indices),
            "active": self.active.tolist(),
            "scores": {str(index): scores for index, scores in self.scores.items()},
            "records": list(meter.log.history),
        }
        return self.states, notes


def _resume(saves: TrainCheckpoints, state_shapes: State, slots: Slots, log: Log) -> Loop | None:
    """Returns the loop of the last save, if there is one; its slots may have another order."""
    indices = slots.trial_indices

    def saved_shapes(notes):
        _check_notes(notes, indices, len(log.targets))
        if notes[SLOTS] == indices:
            return state_shapes
        return jax.tree.map(partial(_resize, len(notes[SLOTS])), state_shapes)

    save = saves.restore(saved_shapes)
    if save is None:
        return None
    states, notes = save.state, save.notes
    order = [notes[SLOTS].index(max(index, 0)) for index in indices]
    if notes[SLOTS] != indices:
        places = jax.tree.map(lambda leaf: leaf.sharding, state_shapes)
        move = lambda states: jax.tree.map(lambda x: x[np.array(order)], states)  # noqa: E731
        states = jax.jit(move, out_shardings=places)(states)
    pairs = zip(indices, order, strict=True)
    active = np.array([index >= 0 and notes["active"][place] for index, place in pairs])
    log.replay(notes["records"])
    log.say(f"goes on from step {save.step}")
    scores = {int(index): scores for index, scores in notes["scores"].items()}
    return Loop(save.step, states, active, scores)


def _check_notes(notes: Any, indices: list[int], targets: int) -> None:
    """Raises ValueError for notes that `Loop.capture` did not write for these trials."""
    trials, records = {max(index, 0) for index in indices}, notes["records"]
    has_trials = {*notes[SLOTS]} - {-1} == trials
    is_complete = len(notes["active"]) == len(notes[SLOTS])
    has_scores = {int(index) for index in notes["scores"]} <= trials
    has_scores &= all(isinstance(scores, dict) for scores in notes["scores"].values())
    has_records = all(0 <= index < targets and isinstance(line, str) for index, line in records)
    if not (has_trials and is_complete and has_scores and has_records):
        raise ValueError("its notes are of other trials, or damaged")


def _resize(slots: int, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns the leaf with another number of slots, sharded over `sweep` if that divides it."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    lead = None if slots % mesh.shape["sweep"] else "sweep"
    place = NamedSharding(mesh, P(lead, *spec[1:]))
    return jax.ShapeDtypeStruct((slots, *leaf.shape[1:]), leaf.dtype, sharding=place)


def _evaluate(population: Population, loop: Loop, meter: Meter) -> list[int]:
    """Scores the active trials, and returns their indices; those at their end become inactive."""
    if not loop.active.any():
        return []
    meter.flush()  # keeps records in the order of steps
    table = jax.device_get(population.score(loop.states.params, loop.active))
    slots, evaluated = population.slots, []
    for slot in np.flatnonzero(loop.active).tolist():
        index = slots.trial_indices[slot]
        scores = {name: float(column[slot]) for name, column in table.items()}
        meter.log.record(index, step=loop.step, eval=scores)
        loop.scores[index] = scores
        evaluated.append(index)
        is_last = loop.step >= population.spec.training.steps
        ends = is_last or slots.trials[slot].should_stop(scores)
        loop.active[slot] = not (ends or has_diverged(scores))
    return evaluated


def has_diverged(scores: Scores) -> bool:
    """Returns whether a model has diverged: one of its scores is not finite."""
    return not all(map(math.isfinite, scores.values()))


def _fetch(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays as NumPy arrays, whole on every process."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree))


def make_take(lm: LM, mesh: Mesh, trains: Trains | None = None) -> Callable[[Params, int], Params]:
    """Returns a function that takes one slot of stacked parameters, sharded like a single model.

    They are those that `trains` picks. Only that slot is sent over `sweep`; plain indexing would
    all-gather the whole stack.
    """

    def take_local(stacked: Params, slot):
        return jax.tree.map(lambda w: w[slot], stacked)

    def take_from_device(stacked: Params, slot):
        slots = jax.tree.leaves(stacked)[0].shape[0]  # of this device
        local = slot - slots * lax.axis_index("sweep")
        is_local = (0 <= local) & (local < slots)
        params = take_local(stacked, jnp.clip(local, 0, slots - 1))
        return jax.tree.map(lambda w: lax.psum(jnp.where(is_local, w, 0), "sweep"), params)

    take = take_local if mesh.shape["sweep"] == 1 else over_sweep(take_from_device, mesh, P())
    picked = jax.eval_shape(partial(pick, trains), shapes(lm))
    return jax.jit(take, out_shardings=shardings(picked, lm.rules, mesh))

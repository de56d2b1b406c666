"""The training loop of a population, with its evaluations and saves."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.logs.log import Log
from undo_jax.runtime.mesh import check_batch
from undo_jax.store.train_checkpoints import TrainCheckpoints
from undo_jax.training import train_step
from undo_jax.training.meter import Meter
from undo_jax.training.population import Population, Task
from undo_jax.training.trial import Lanes, Member, in_lanes, read, taker
from undo_jax.types import Lazy, Params, Scores


class Result(NamedTuple):
    """One trained model."""

    params: Lazy  # gathered from the `sweep` axis when called
    steps: int  # number of updates
    scores: Scores  # of its last evaluation


Evaluated = Mapping[int, Result]  # by member: those that were just evaluated
Seen = Callable[[int, Evaluated], None]  # called at every evaluation with its step


def train_together(
    task: Task,
    mesh: Mesh,
    members: Sequence[Member],
    log: Log,
    saves: TrainCheckpoints | None = None,
    seen: Seen | None = None,
) -> list[Result]:
    """Train every member until its stop rule holds at an evaluation, or to the last step.

    A member whose scores are not finite stops, too: it cannot recover. With `saves`, training
    resumes from the last save, and is saved on the way: `seen` may be called again for evaluations
    since that save. Raises ValueError where the mesh does not divide the batch, and what
    `TrainCheckpoints.save_if_due` raises.
    """
    training = task.training
    check_batch(mesh, training.batch_size, training.accumulation)
    lanes = in_lanes(members, mesh.shape["sweep"])
    population = Population(task, mesh, lanes)
    loop = _resume(saves, population.like, lanes, log) if saves else None
    loop = loop or Loop(0, population.start(), lanes.taken, {})
    picked = (task.trains,) if population.shared else ()
    meter, take = Meter(log, lanes.indices), taker(task.lm, mesh, *picked)
    while True:
        if saves:
            saves.save_if_due(loop.step, lambda: loop.capture(meter))
        if loop.step % training.eval_every == 0 or loop.step == training.steps:
            found = _evaluate(population, loop, meter)
            if seen and found:
                seen(loop.step, _results(population, loop, take, found))
        if not loop.active.any():
            break
        batch = read(lanes.inputs, loop.step, training.batch_size, mesh, task.batch_fields)
        loop.states, metrics = population.advance(loop.states, batch, loop.active)
        loop.step += 1
        meter.step(loop.step, loop.active, metrics, batch)
    if saves:
        saves.save_at_end(loop.step, lambda: loop.capture(meter))
    return [*_results(population, loop, take, range(len(members))).values()]


def _results(population: Population, loop: "Loop", take: Any, members: Iterable[int]) -> Evaluated:
    """Results of members now. Call `params` of those that train on before their next step."""
    steps, params = _fetch(loop.states.step, population.mesh), loop.states.params

    def taken(lane: int) -> Params:
        # one at a time: two programs with collectives at once on CPU devices may deadlock, each
        # waiting for devices that are in the other
        own = jax.block_until_ready(take(params, lane))
        return jax.block_until_ready(population.whole(own, lane))

    lanes = {member: population.lanes.indices.index(member) for member in members}
    return {
        member: Result(partial(taken, lane), int(steps[lane]), loop.scores[member])
        for member, lane in lanes.items()
    }


@dataclass
class Loop:
    """Where a training loop stands between two steps."""

    step: int
    states: train_step.State  # [M, ...], of every lane
    active: np.ndarray  # whether each lane still trains
    scores: dict[int, Scores]  # of each member's last evaluation

    def capture(self, meter: Meter) -> tuple[train_step.State, dict[str, Any]]:
        """All that `_resume` needs, as arrays and JSON."""
        meter.flush()
        notes = {
            "lanes": list(meter.lanes),
            "active": self.active.tolist(),
            "scores": {str(member): scores for member, scores in self.scores.items()},
            "records": list(meter.log.history),
        }
        return self.states, notes


def _resume(saves: TrainCheckpoints, like: train_step.State, dealt: Lanes, log: Log) -> Loop | None:
    """The loop of the last save, if there is one; its lanes may have been arranged otherwise."""
    lanes = dealt.indices

    def saved(notes):
        _check_notes(notes, lanes, len(log.targets))
        count = len(notes["lanes"])
        return like if notes["lanes"] == lanes else jax.tree.map(partial(_resize, count), like)

    found = saves.restore(saved)
    if found is None:
        return None
    states, notes = found.state, found.notes
    order = [notes["lanes"].index(max(member, 0)) for member in lanes]
    if notes["lanes"] != lanes:
        places = jax.tree.map(lambda leaf: leaf.sharding, like)
        move = lambda states: jax.tree.map(lambda x: x[np.array(order)], states)  # noqa: E731
        states = jax.jit(move, out_shardings=places)(states)
    active = np.array([m >= 0 and notes["active"][i] for m, i in zip(lanes, order, strict=True)])
    log.replay(notes["records"])
    log.say(f"goes on from step {found.step}")
    scores = {int(member): scores for member, scores in notes["scores"].items()}
    return Loop(found.step, states, active, scores)


def _check_notes(notes: Any, lanes: list[int], targets: int) -> None:
    """Raises ValueError for notes that `Loop.capture` did not write for these members."""
    members, records = {max(member, 0) for member in lanes}, notes["records"]
    known = {*notes["lanes"]} - {-1} == members
    full = len(notes["active"]) == len(notes["lanes"])
    scored = {int(member) for member in notes["scores"]} <= members
    scored &= all(isinstance(scores, dict) for scores in notes["scores"].values())
    logged = all(0 <= member < targets and isinstance(line, str) for member, line in records)
    if not (known and full and scored and logged):
        raise ValueError("its notes are of other members, or damaged")


def _resize(lanes: int, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The leaf with another number of lanes, sharded over `sweep` if that divides it."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    lead = None if lanes % mesh.shape["sweep"] else "sweep"
    place = NamedSharding(mesh, P(lead, *spec[1:]))
    return jax.ShapeDtypeStruct((lanes, *leaf.shape[1:]), leaf.dtype, sharding=place)


def _evaluate(population: Population, loop: Loop, meter: Meter) -> list[int]:
    """Score the active members, and return them; those at their end become inactive."""
    if not loop.active.any():
        return []
    meter.flush()  # keeps records in the order of steps
    table = jax.device_get(population.score(loop.states.params, loop.active))
    lanes, evaluated = population.lanes, []
    for lane in np.flatnonzero(loop.active).tolist():
        member = lanes.indices[lane]
        found = {name: float(column[lane]) for name, column in table.items()}
        meter.log.record(member, step=loop.step, eval=found)
        loop.scores[member] = found
        evaluated.append(member)
        ends = loop.step >= population.task.training.steps or lanes.members[lane].ends(found)
        loop.active[lane] = not (ends or diverged(found))
    return evaluated


def diverged(scores: Scores) -> bool:
    """Whether a model has diverged: one of its scores is not finite."""
    return not all(map(math.isfinite, scores.values()))


def _fetch(tree: Any, mesh: Mesh) -> Any:
    """Arrays as NumPy arrays, whole on every process."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree))

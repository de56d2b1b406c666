"""The programs of a population, compiled for given members."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Lowered

from undo_jax.runtime import device_memory
from undo_jax.runtime.sharding import param_shardings, with_shardings
from undo_jax.training import optim, programs, train_step
from undo_jax.training.programs import Programs, jit_on, over_members, references, while_active
from undo_jax.training.trial import Lanes, put, shares
from undo_jax.types import LM, Loss, Metrics, Params, shapes


class Task(NamedTuple):
    """What a population is trained on, and how its models are scored during training."""

    lm: LM
    loss: Loss
    training: train_step.Training
    evaluate: Callable[[LM, Params, Any], Metrics]  # scores one model on `eval_data`
    eval_data: Any  # a pytree of arrays
    row_length: int  # T of every stream
    trains: optim.Trains | None = None  # which parameters train; None: all
    batch_fields: tuple[str, ...] = ()  # what streams have beside tokens, see `Packed`


class _Made(NamedTuple):
    advance: Compiled
    score: Compiled
    start: Compiled
    put: Compiled | None  # needed if members start from several models


@dataclass(frozen=True, eq=False)
class Population:
    """A task's members on a mesh. Its programs are compiled all at once, at the first call."""

    task: Task
    mesh: Mesh
    lanes: Lanes

    @cached_property
    def _programs(self) -> Programs:
        task, members = self.task, self.lanes.members
        how = task.lm, task.loss, task.training, self._ref_lms, self.mesh, len(members)
        return programs.build(*how, task.trains, tuple(self.lanes.values), self.shared)

    @property
    def shared(self) -> bool:
        """Whether what does not train is held once for members that start alike."""
        lanes = self.lanes
        count = int(lanes.taken.sum()), len(lanes.firsts)
        return shares(self.task.trains, *count, self.mesh)

    @property
    def _ref_lms(self) -> dict[str, LM]:
        return {name: lm for name, (lm, _) in self.lanes.inputs[0].refs.items()}

    @property
    def like(self) -> train_step.State:
        """Shapes and shardings of the members' states, [M, ...]."""
        return self._programs.states

    @cached_property
    def _references(self) -> dict[str, Params]:
        inputs = self.lanes.inputs
        return {
            name: references(lm, [one.refs[name][1]() for one in inputs], self.mesh)
            for name, lm in self._ref_lms.items()
        }

    @cached_property
    def _owners(self) -> Any:
        lanes = self.lanes
        return (lanes.owners, lanes.origins) if self.shared else lanes.owners

    @cached_property
    def _beginnings(self) -> tuple[Params, ...]:
        """What members start from, if that is shared."""
        if not self.shared:
            return ()
        trees = [params() for params in self.lanes.firsts.values()]
        # one program with collectives at a time: on CPU devices two may wait for each other
        jax.block_until_ready(self._references)
        return (jax.block_until_ready(programs.beginnings(self.task.lm, trees, self.mesh)),)

    @cached_property
    def _complete(self) -> Any:
        """(Models stacked, an index, what trains of one) -> that model."""

        def complete(stacked, origin, own):
            return optim.put(self.task.trains, jax.tree.map(lambda x: x[origin], stacked), own)

        return jax.jit(complete, out_shardings=param_shardings(self.task.lm, self.mesh))

    def whole(self, own: Params, lane: int) -> Params:
        """The parameters of a lane's model, from those that its state holds."""
        if not self.shared:
            return own
        return self._complete(*self._beginnings, self.lanes.origins[lane], own)

    @cached_property
    def _values(self) -> dict[str, np.ndarray]:
        return self.lanes.values

    def start(self) -> train_step.State:
        """The members' first states. Models are loaded one at a time, each into its lanes."""
        _ = self._references  # loaded before the states take memory
        made, place = self._compiled, param_shardings(self.task.lm, self.mesh)
        (first, params), *others = self.lanes.firsts.items()
        keys, rates = self.lanes.keys, self.lanes.rates
        if self.shared:
            states = made.start((*self._beginnings, self.lanes.origins), keys, rates)
            return jax.block_until_ready(states)
        states = made.start(jax.device_put(params(), place), keys, rates)
        for first, params in others:
            assert made.put is not None
            here = self.lanes.beginning_as(first)
            found = made.put(states.params, jax.device_put(params(), place), here)
            states = states._replace(params=found)
        return states

    def advance(
        self, states: train_step.State, batch: Any, active: Any
    ) -> tuple[train_step.State, Metrics]:
        """One step of the active members; `states` is donated."""
        beside = self._owners, active, self._values
        inputs = self._references, batch, *self._beginnings
        return self._compiled.advance(states, beside, inputs)

    def score(self, params: Params, active: Any) -> Metrics:
        """Scores of the active members, [M]; 0 for others."""
        eval_data = self.task.eval_data
        if self.shared:
            given = params, active, self.lanes.origins
            return self._compiled.score(given, (eval_data, *self._beginnings))
        return self._compiled.score((params, active), eval_data)

    def _lowered(self) -> Iterator[Lowered]:
        """The programs in the order of `_Made`; the slowest to compile comes first."""
        task, mesh, made, lanes = self.task, self.mesh, self._programs, self.lanes
        lengths = dict.fromkeys(lanes.inputs[0].streams, task.row_length)
        rows, count = task.training.batch_size, len(lanes.inputs)
        how = made, self._ref_lms, lengths, rows, mesh, count, task.batch_fields
        given = programs.example(*how, (task.lm, len(lanes.firsts)) if self.shared else None)
        yield made.advance.lower(*given)
        states, (_, active, _), inputs = given
        stacked = inputs[2:]
        evaluate = partial(task.evaluate, task.lm)

        def score_one(member, eval_data):
            params, active, *origin = member
            if self.shared:
                (origin,), (eval_data, stacked) = origin, eval_data
                first = jax.tree.map(lambda x: x[origin], stacked)
                params = optim.put(task.trains, first, params)
            rest = lambda made, *_: programs.zeros(made)  # noqa: E731
            return while_active(len(lanes.members), active, evaluate, rest, params, eval_data)

        everywhere = NamedSharding(mesh, P())
        score_all = jit_on(mesh)(over_members(score_one, mesh), out_shardings=everywhere)
        scored = states.params, active
        if self.shared:
            yield score_all.lower((*scored, lanes.origins), (task.eval_data, *stacked))
            yield made.start.lower((*stacked, lanes.origins), lanes.keys, lanes.rates)
            return
        yield score_all.lower(scored, task.eval_data)
        model = with_shardings(shapes(task.lm), task.lm.rules, mesh)
        yield made.start.lower(model, lanes.keys, lanes.rates)
        if len(lanes.firsts) > 1:
            places = jax.tree.map(lambda x: x.sharding, states.params)
            put_all = jit_on(mesh)(put, donate_argnums=0, out_shardings=places)
            yield put_all.lower(states.params, model, active)

    @cached_property
    def _compiled(self) -> _Made:
        """Compiled in parallel, while the next is lowered: XLA compiles mostly on one core."""
        with ThreadPoolExecutor() as pool:
            advance, score, start, *more = pool.map(Lowered.compile, self._lowered())
        if found := advance.memory_analysis():
            needed = found.argument_size_in_bytes + found.temp_size_in_bytes
            count, rows = int(self.lanes.taken.sum()), self.task.training.batch_size
            what = f"{count} models trained together on batches of {rows} rows"
            device_memory.check_fits(
                what, needed, device_memory.device_bytes(self.mesh), "each device's memory"
            )
        return _Made(advance, score, start, more[0] if more else None)

"""The programs of a population, compiled for given trials."""

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
from undo_jax.training import optim, programs
from undo_jax.training.programs import Programs, jit_on, over_members, while_active
from undo_jax.training.train_spec import TrainSpec
from undo_jax.training.train_step import State
from undo_jax.training.trial import Slots, put, shares_frozen
from undo_jax.types import LM, Metrics, Params, shapes


class Evaluator(NamedTuple):
    """How models are scored during training."""

    evaluate: Callable[[LM, Params, Any], Metrics]  # scores one model on `data`; pure
    data: Any  # a pytree of arrays


class _Executables(NamedTuple):
    advance: Compiled
    score: Compiled
    start: Compiled
    put: Compiled | None  # needed if trials start from several models


@dataclass(frozen=True, eq=False)
class Population:
    """The trials of one train spec on a mesh. All programs are compiled at the first call."""

    spec: TrainSpec
    evaluation: Evaluator
    mesh: Mesh
    slots: Slots

    @cached_property
    def _programs(self) -> Programs:
        spec = self.spec
        return programs.build(
            lm=spec.lm,
            loss=spec.loss,
            training=spec.training,
            ref_lms=spec.refs,
            mesh=self.mesh,
            trials=len(self.slots.trials),
            trains=spec.trains,
            loss_kwargs=tuple(self.slots.loss_kwargs),
            shares_frozen=self.shares_frozen,
        )

    @property
    def shares_frozen(self) -> bool:
        """Whether parameters that do not train are held once for trials that start alike."""
        trials, inits = int(self.slots.is_taken.sum()), len(self.slots.init_params)
        return shares_frozen(self.spec.trains, trials, inits, self.mesh)

    @property
    def state_shapes(self) -> State:
        """Shapes and shardings of the trials' states, [M, ...]."""
        return self._programs.states

    @cached_property
    def _references(self) -> dict[str, Params]:
        return {
            name: programs.stack_references(
                lm, [inputs.refs[name][1]() for inputs in self.slots.inputs], self.mesh
            )
            for name, lm in self.spec.refs.items()
        }

    @cached_property
    def _input_index(self) -> Any:
        slots = self.slots
        return (slots.input_index, slots.init_index) if self.shares_frozen else slots.input_index

    @cached_property
    def _inits(self) -> tuple[Params, ...]:
        """The stacked models that trials start from, if their frozen parameters are shared."""
        if not self.shares_frozen:
            return ()
        trees = [load() for load in self.slots.init_params.values()]
        # one program with collectives at a time: on CPU devices two may wait for each other
        jax.block_until_ready(self._references)
        return (jax.block_until_ready(programs.stack_inits(self.spec.lm, trees, self.mesh)),)

    @cached_property
    def _complete(self) -> Any:
        """(stacked models, an index, what trains of one model) -> that model."""

        def complete(stacked, init_index, picked):
            init = jax.tree.map(lambda x: x[init_index], stacked)
            return optim.put(self.spec.trains, init, picked)

        return jax.jit(complete, out_shardings=param_shardings(self.spec.lm, self.mesh))

    def complete_params(self, state_params: Params, slot: int) -> Params:
        """Returns all parameters of a slot's model, given those that its state holds."""
        if not self.shares_frozen:
            return state_params
        return self._complete(*self._inits, self.slots.init_index[slot], state_params)

    @cached_property
    def _loss_kwargs(self) -> dict[str, np.ndarray]:
        return self.slots.loss_kwargs

    def start(self) -> State:
        """Returns the first states. Models are loaded one at a time, each into its slots."""
        _ = self._references  # loaded before the states take memory
        executables, place = self._compiled, param_shardings(self.spec.lm, self.mesh)
        keys, learning_rates = self.slots.keys, self.slots.learning_rates
        if self.shares_frozen:
            inits = *self._inits, self.slots.init_index
            return jax.block_until_ready(executables.start(inits, keys, learning_rates))
        (_, load_first), *further = self.slots.init_params.items()
        states = executables.start(jax.device_put(load_first(), place), keys, learning_rates)
        for init_name, load in further:
            assert executables.put is not None
            mask = self.slots.starts_from(init_name)
            params = executables.put(states.params, jax.device_put(load(), place), mask)
            states = states._replace(params=params)
        return states

    def advance(self, states: State, batch: Any, active: Any) -> tuple[State, Metrics]:
        """Takes one step of the active trials; `states` is donated."""
        per_trial = self._input_index, active, self._loss_kwargs
        return self._compiled.advance(states, per_trial, (self._references, batch, *self._inits))

    def score(self, params: Params, active: Any) -> Metrics:
        """Returns scores of the active trials, [M]; 0 for others."""
        data = self.evaluation.data
        if self.shares_frozen:
            per_trial = params, active, self.slots.init_index
            return self._compiled.score(per_trial, (data, *self._inits))
        return self._compiled.score((params, active), data)

    def _lowered(self) -> Iterator[Lowered]:
        """Yields the programs in the order of `_Executables`; the slowest to compile is first."""
        spec, mesh, slots, built = self.spec, self.mesh, self.slots, self._programs

        # 1. The train step
        arguments = programs.example_arguments(
            built,
            refs=spec.refs,
            row_lengths=dict.fromkeys(spec.streams, spec.row_length),
            rows=spec.training.batch_size,
            mesh=mesh,
            inputs=len(slots.inputs),
            batch_fields=spec.batch_fields,
            inits=(spec.lm, len(slots.init_params)) if self.shares_frozen else None,
        )
        yield built.advance.lower(*arguments)
        states, (_, active, _), (_, _, *stacked) = arguments

        # 2. The evaluation
        evaluate, data = partial(self.evaluation.evaluate, spec.lm), self.evaluation.data

        def score_one(trial, data):
            params, active, *init_index = trial
            if self.shares_frozen:
                (init_index,), (data, stacked) = init_index, data
                init = jax.tree.map(lambda x: x[init_index], stacked)
                params = optim.put(spec.trains, init, params)
            skip = lambda result, *_: programs.zeros(result)  # noqa: E731
            return while_active(len(slots.trials), active, evaluate, skip, params, data)

        replicated = NamedSharding(mesh, P())
        score_all = jit_on(mesh)(over_members(score_one, mesh), out_shardings=replicated)
        if self.shares_frozen:
            yield score_all.lower((states.params, active, slots.init_index), (data, *stacked))
        else:
            yield score_all.lower((states.params, active), data)

        # 3. The first states
        if self.shares_frozen:
            inits = *stacked, slots.init_index
            yield built.start.lower(inits, slots.keys, slots.learning_rates)
            return
        model = with_shardings(shapes(spec.lm), spec.lm.rules, mesh)
        yield built.start.lower(model, slots.keys, slots.learning_rates)
        if len(slots.init_params) > 1:
            places = jax.tree.map(lambda x: x.sharding, states.params)
            put_all = jit_on(mesh)(put, donate_argnums=0, out_shardings=places)
            yield put_all.lower(states.params, model, active)

    @cached_property
    def _compiled(self) -> _Executables:
        """Compiled in parallel, while the next is lowered: XLA compiles mostly on one core."""
        with ThreadPoolExecutor() as pool:
            advance, score, start, *put_all = pool.map(Lowered.compile, self._lowered())
        if memory := advance.memory_analysis():
            needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            count, rows = int(self.slots.is_taken.sum()), self.spec.training.batch_size
            label = f"{count} models trained together on batches of {rows} rows"
            available = device_memory.device_bytes(self.mesh)
            device_memory.check_fits(label, needed, available, "each device's memory")
        return _Executables(advance, score, start, put_all[0] if put_all else None)

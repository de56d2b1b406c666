"""Trials, and populations: the trials of one train spec, with their programs compiled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Lowered

from undo_jax.logs.sink import Tags, Target
from undo_jax.runtime.compiler import jit_on
from undo_jax.runtime.device_memory import check_program
from undo_jax.runtime.sharding import param_shardings, with_shardings
from undo_jax.training import programs
from undo_jax.training.arguments import argument_shapes, stack_inits, stack_references
from undo_jax.training.programs import Programs, TrainSpec, over_slots, while_active
from undo_jax.training.train_step import State
from undo_jax.types import LM, Key, Lazy, Metrics, Params, Scores, shapes


@dataclass(frozen=True, eq=False)
class TrialInputs:
    """Streams of rows and reference models that trials share. Equal only to itself."""

    # streams[name][step, rows] -> int32 [B, T+1], or `Packed`; the loop reads it before each step
    streams: Mapping[str, Any]
    refs: Mapping[str, tuple[LM, Lazy]]  # loaded once, when training starts


@dataclass(frozen=True, eq=False)
class Trial:
    """One training run: a model with one learning rate. Equal only to itself."""

    init_name: str  # identifies `init_params`: of trials with one name only one loads them
    init_params: Lazy
    key: Key
    learning_rate: float  # the peak
    inputs: TrialInputs
    # the stop rule; a trial whose scores are not finite stops, too
    should_stop: Callable[[Scores], bool] = lambda scores: False
    # of two trials of a model, the one with the larger value is the stronger
    attack_score: Callable[[Scores], tuple[float, ...]] = lambda scores: ()
    loss_kwargs: Mapping[str, float] = field(default_factory=dict)  # that differ between trials
    target: Target | None = None  # where its records go; None: nowhere
    tags: Tags = field(default_factory=dict)  # fields of all its records


class TrialResult(NamedTuple):
    """A trial as its training has left it."""

    trial: Trial
    params: Lazy  # gathered from the `sweep` axis when called
    steps: int  # number of updates
    scores: Scores  # of its last evaluation


class Slots(NamedTuple):
    """The trial of each slot. An empty slot holds a copy of trial 0 that is never active."""

    trial_indices: list[int]  # the index of each slot's trial; -1: the slot is empty
    trials: list[Trial]  # one per slot, M in all
    inputs: list[TrialInputs]  # each once
    init_params: dict[str, Lazy]  # each once, by `Trial.init_name`

    @property
    def is_taken(self) -> np.ndarray:
        """Whether each slot holds a trial, and not a copy. Shape [M]."""
        return np.array([index >= 0 for index in self.trial_indices])

    @property
    def input_index(self) -> np.ndarray:
        """The index of each slot's inputs. Shape [M]."""
        return np.array([self.inputs.index(trial.inputs) for trial in self.trials])

    @property
    def init_index(self) -> np.ndarray:
        """The index in `init_params` of what each slot starts from. Shape [M]."""
        names = [*self.init_params]
        return np.array([names.index(trial.init_name) for trial in self.trials], np.int32)

    @property
    def keys(self) -> Key:
        return jnp.stack([trial.key for trial in self.trials])

    @property
    def learning_rates(self) -> np.ndarray:
        return np.array([trial.learning_rate for trial in self.trials], np.float32)

    @property
    def loss_kwargs(self) -> dict[str, np.ndarray]:
        """Each slot's keyword arguments of the loss. Shapes [M]."""
        return {
            name: np.array([trial.loss_kwargs[name] for trial in self.trials], np.float32)
            for name in self.trials[0].loss_kwargs
        }

    def starts_from(self, init_name: str) -> np.ndarray:
        """Returns whether each slot starts from these parameters. Shape [M]."""
        return np.array([trial.init_name == init_name for trial in self.trials])


def assign_slots(trials: Sequence[Trial], devices: int) -> Slots:
    """Assigns trials to slots on `devices` devices of the `sweep` axis."""
    indices = deal(len(trials), devices)
    slots = [trials[max(index, 0)] for index in indices]
    inputs = list(dict.fromkeys(trial.inputs for trial in trials))
    return Slots(indices, slots, inputs, {trial.init_name: trial.init_params for trial in slots})


def deal(count: int, devices: int) -> list[int]:
    """Returns the trial of each slot, round-robin over devices; -1 marks an empty slot.

    Neighbours in the list tend to take equally many steps (e.g. one alpha's seeds), so that
    round-robin balances the load.
    """
    rounds = -(-count // devices)
    order = [device + devices * turn for device in range(devices) for turn in range(rounds)]
    return [index if index < count else -1 for index in order]


class Evaluator(NamedTuple):
    """How models are scored during training."""

    evaluate: Callable[[LM, Params, Any], Metrics]  # scores one model on `data`; pure
    data: Any  # a pytree of arrays


class _Executables(NamedTuple):
    advance: Compiled
    score: Compiled
    initialise: Compiled
    copy_in: Compiled | None  # needed if trials start from several models


@dataclass(frozen=True, eq=False)
class Population:
    """The trials of one train spec on a mesh. All programs are compiled at the first call."""

    spec: TrainSpec
    evaluation: Evaluator
    mesh: Mesh  # trials are sharded over its axis `sweep`
    trials: Sequence[Trial]

    @cached_property
    def slots(self) -> Slots:
        """The trials in the order of the stacked arrays, which have an axis M of slots."""
        return assign_slots(self.trials, self.mesh.shape["sweep"])

    @cached_property
    def shares_frozen(self) -> bool:
        """Whether parameters that do not train are held once for trials that start alike."""
        trains, inits = self.spec.trains, len(self.slots.init_params)
        return programs.can_share_frozen(trains, len(self.trials), inits, self.mesh)

    @cached_property
    def _programs(self) -> Programs:
        slots = self.slots
        names = tuple(slots.loss_kwargs)
        return programs.build(self.spec, self.mesh, len(slots.trials), names, self.shares_frozen)

    @property
    def state_shapes(self) -> State:
        """Shapes and shardings of the slots' states, [M, ...]."""
        return self._programs.states

    # 1. What the trials read, in stacked arrays

    @cached_property
    def _references(self) -> dict[str, Params]:
        """The reference models of each input, rounded (`LM.rounded`) and stacked."""
        return {
            name: stack_references(
                lm, [inputs.refs[name][1]() for inputs in self.slots.inputs], self.mesh
            )
            for name, lm in self.spec.refs.items()
        }

    @cached_property
    def _inits(self) -> tuple[Params, ...]:
        """The stacked models that trials start from, if their frozen parameters are shared."""
        if not self.shares_frozen:
            return ()
        trees = [load() for load in self.slots.init_params.values()]
        # one program with collectives at a time: on CPU devices two may wait for each other
        jax.block_until_ready(self._references)
        return (jax.block_until_ready(stack_inits(self.spec.lm, trees, self.mesh)),)

    @cached_property
    def _input_index(self) -> Any:
        slots = self.slots
        return (slots.input_index, slots.init_index) if self.shares_frozen else slots.input_index

    @cached_property
    def _loss_kwargs(self) -> dict[str, np.ndarray]:
        return self.slots.loss_kwargs

    # 2. The programs

    def initialise(self) -> State:
        """Returns the first states. Models are loaded one at a time, each into its slots."""
        _ = self._references  # loaded before the states take memory
        executables, place = self._compiled, param_shardings(self.spec.lm, self.mesh)
        keys, learning_rates = self.slots.keys, self.slots.learning_rates
        if self.shares_frozen:
            inits = *self._inits, self.slots.init_index
            return jax.block_until_ready(executables.initialise(inits, keys, learning_rates))
        (_, load_first), *further = self.slots.init_params.items()
        params = jax.device_put(load_first(), place)
        states = executables.initialise(params, keys, learning_rates)
        for init_name, load in further:
            assert executables.copy_in is not None
            mask = self.slots.starts_from(init_name)
            params = executables.copy_in(states.params, jax.device_put(load(), place), mask)
            states = states._replace(params=params)
        return states

    def advance(self, states: State, batch: Any, active: Any) -> tuple[State, Metrics]:
        """Takes one step of the active trials; `states` is donated."""
        per_slot = self._input_index, active, self._loss_kwargs
        return self._compiled.advance(states, per_slot, (self._references, batch, *self._inits))

    def score(self, params: Params, active: Any) -> Metrics:
        """Returns scores of all slots, [M]; 0 for those that are not active."""
        per_slot = params, active, self.slots.init_index
        return self._compiled.score(per_slot, (self.evaluation.data, *self._inits))

    @cached_property
    def _complete(self) -> Any:
        """(what trains of one model, its `init_index`, the stacked models) -> that model."""
        complete = partial(programs.complete, self.spec.trains)
        return jax.jit(complete, out_shardings=param_shardings(self.spec.lm, self.mesh))

    def complete_params(self, state_params: Params, slot: int) -> Params:
        """Returns all parameters of a slot's model, given those that its state holds."""
        if not self.shares_frozen:
            return state_params
        return self._complete(state_params, self.slots.init_index[slot], self._inits)

    def _lowered(self) -> Iterator[Lowered]:
        """Yields the programs in the order of `_Executables`; the slowest to compile is first."""
        spec, mesh, slots, built = self.spec, self.mesh, self.slots, self._programs
        inits = len(slots.init_params) if self.shares_frozen else None
        arguments = argument_shapes(built, spec, mesh, len(slots.inputs), inits)
        yield built.advance.lower(*arguments)
        states, (_, active, _), (_, _, *stacked) = arguments
        evaluate = partial(self.evaluation.evaluate, spec.lm)

        def score_one(slot, shared):
            picked, active, init_index = slot
            data, *inits = shared
            params = programs.complete(spec.trains, picked, init_index, inits)
            skip = lambda result, *_: programs.zeros(result)  # noqa: E731
            return while_active(len(slots.trials), active, evaluate, skip, params, data)

        replicated = NamedSharding(mesh, P())
        score_all = jit_on(mesh)(over_slots(score_one, mesh), out_shardings=replicated)
        per_slot = states.params, active, slots.init_index
        yield score_all.lower(per_slot, (self.evaluation.data, *stacked))
        model = with_shardings(shapes(spec.lm), spec.lm.rules, mesh)
        first = (*stacked, slots.init_index) if self.shares_frozen else model
        yield built.initialise.lower(first, slots.keys, slots.learning_rates)
        if len(slots.init_params) > 1 and not self.shares_frozen:
            places = jax.tree.map(lambda x: x.sharding, states.params)
            copy_in = jit_on(mesh)(_copy_in, donate_argnums=0, out_shardings=places)
            yield copy_in.lower(states.params, model, active)

    @cached_property
    def _compiled(self) -> _Executables:
        """Compiled in parallel, while the next is lowered: XLA compiles mostly on one core."""
        with ThreadPoolExecutor() as pool:
            advance, score, initialise, *copy_in = pool.map(Lowered.compile, self._lowered())
        rows = self.spec.training.batch_size
        label = f"{len(self.trials)} models trained together on batches of {rows} rows"
        check_program(label, advance, self.mesh)
        return _Executables(advance, score, initialise, copy_in[0] if copy_in else None)


def _copy_in(stacked: Params, params: Params, mask: Any) -> Params:
    """Returns stacked parameters [M, ...] with `params` in the slots where `mask` is true."""

    def copy_leaf(stack, leaf):
        return jnp.where(mask.reshape(-1, *[1] * leaf.ndim), leaf, stack)

    return jax.tree.map(copy_leaf, stacked, params)

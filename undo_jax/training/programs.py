"""The step of one trial lifted to all trials that train together, as jitted programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped

from undo_jax.runtime.sharding import with_shardings
from undo_jax.training import optim, train_step
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss, Params, shapes

COMPILER_OPTIONS = {
    "cpu": {"xla_backend_optimization_level": 1}
}  # runs as fast as 3, compiles faster


@dataclass(frozen=True)
class TrainSpec:
    """Everything that determines the program of a train step. Equal specs share one program."""

    lm: LM
    loss: Loss
    training: Training
    streams: tuple[str, ...]  # a batch has training.batch_size rows of each
    refs: Mapping[str, LM]  # the frozen models that the loss reads
    row_length: int  # T of every stream
    trains: optim.Trains | None = None  # which parameters train; None: all
    batch_fields: tuple[str, ...] = ()  # what the streams have beside tokens, see `Packed`

    @property
    def tokens(self) -> int:
        """Number of tokens in the batch of one step."""
        return self.training.batch_size * self.row_length * len(self.streams)


class Programs(NamedTuple):
    """The jitted programs of a population; no array exists yet."""

    start: Wrapped  # (params of one model, keys, learning rates) -> states that start from it; with
    # `shares_frozen`: ((stacked models, init_index), keys, learning rates) -> states
    advance: Wrapped  # (states, (input_index, active, loss_kwargs), (refs, batch)) ->
    # (states, metrics)
    states: train_step.State  # shapes and shardings of the trials' states, [M, ...]
    loss_kwargs: Mapping[str, jax.ShapeDtypeStruct]  # that differ between trials, [M]


def build(
    spec: TrainSpec,
    mesh: Mesh,
    trials: int,
    loss_kwargs: Sequence[str] = (),
    shares_frozen: bool = False,
) -> Programs:
    """Returns the programs that train several models together. `advance` donates the states.

    Args:
        spec: what the step depends on.
        mesh: the devices.
        trials: M, the number of models.
        loss_kwargs: keyword arguments of the loss whose values differ between trials.
        shares_frozen: whether the states hold only the parameters that train, see `optim.pick`.
            `advance` then also takes the models that trials start from, which have the others.
    """
    lm, training, trains = spec.lm, spec.training, spec.trains
    optimizer = optim.build(training.optimizer, training.steps)

    def advance_one(trial, inputs):
        state, input_index, active, kwargs = trial
        input_index, init_index = input_index if shares_frozen else (input_index, None)
        refs, tokens = _take(input_index, inputs[:2])
        batch = {name: train_step.rows(packed) for name, packed in tokens.items()}
        loss = partial(spec.loss, **kwargs) if kwargs else spec.loss
        step = train_step.make_step(lm, loss, optimizer, spec.refs, training.accumulation, trains)
        if shares_frozen:
            step = _with_frozen(step, trains, _take(init_index, inputs[2]))
        skip = lambda result, state, *_: (state, zeros(result[1]))  # noqa: E731
        return while_active(trials, active, step, skip, state, refs, batch)

    def start(params, keys, learning_rates):
        start_one = lambda key, rate: train_step.start(params, key, rate, optimizer, trains)  # noqa: E731
        return jax.vmap(start_one)(keys, learning_rates)

    def start_picked(inits, keys, learning_rates):
        stacked, init_index = inits
        picked = jax.vmap(partial(optim.pick, trains))(stacked)
        params = jax.tree.map(lambda x: x[init_index], picked)
        start_one = lambda params, key, rate: train_step.start(params, key, rate, optimizer)  # noqa: E731
        return jax.vmap(start_one)(params, keys, learning_rates)

    # 1. Shapes and shardings of the states
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), trials))
    rates = jax.ShapeDtypeStruct((trials,), jnp.float32)
    inits: Any = (
        (stacked_shapes(lm, 1), np.zeros(trials, np.int32)) if shares_frozen else shapes(lm)
    )
    start_all: Any = start_picked if shares_frozen else start
    states = with_shardings(
        jax.eval_shape(start_all, inits, keys, rates), lm.rules, mesh, ("sweep",)
    )
    places = jax.tree.map(lambda x: x.sharding, states)
    replicated = NamedSharding(mesh, P())  # every process can read it

    # 2. The step of one trial, lifted to all trials
    advance_all, jit = over_members(advance_one, mesh), jit_on(mesh)

    def advance(states, per_trial, inputs):
        return advance_all((states, *per_trial), inputs)

    return Programs(
        start=jit(start_all, out_shardings=places),
        advance=jit(advance, donate_argnums=0, out_shardings=(places, replicated)),
        states=states,
        loss_kwargs=dict.fromkeys(loss_kwargs, rates),
    )


def shares_frozen(trains: optim.Trains | None, trials: int, inits: int, mesh: Mesh) -> bool:
    """Returns whether parameters that do not train are held once for trials that start alike.

    They are on every device along `sweep`: so only where on average two trials start alike, and
    where the other axes, which would shard them, have one device.

    Args:
        trains: which parameters train; None: all.
        trials: number of trials.
        inits: number of different parameters that they start from.
        mesh: the devices.
    """
    sweep_only = mesh.shape["sweep"] == mesh.size
    return trains is not None and trials >= 2 * inits and sweep_only


def complete(
    trains: optim.Trains | None, picked: Params, init_index: Any, inits: Sequence[Params]
) -> Params:
    """Returns all parameters of a trial, given those of its state.

    `inits` are the stacked models that trials start from; empty if the states hold all parameters.
    """
    return optim.put(trains, _take(init_index, inits[0]), picked) if inits else picked


def _with_frozen(step: Any, trains: optim.Trains | None, frozen: Params) -> Any:
    """Returns a step of states that hold only what trains; the rest is in `frozen`."""

    def picked_step(state, refs, batch):
        complete = state._replace(params=optim.put(trains, frozen, state.params))
        state, metrics = step(complete, refs, batch)
        return state._replace(params=optim.pick(trains, state.params)), metrics

    return picked_step


def stacked_shapes(lm: LM, count: int) -> Params:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), shapes(lm))


def _take(index: Any, stacked: Any) -> Any:
    """Returns one element of stacked arrays."""
    return jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[index], stacked)


def over_members(f: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Lifts `f(trial, inputs)` to trials stacked on a leading axis.

    Trials are sharded over `sweep` and run one after another within a device (`lax.map`), each as
    it would run alone; the other mesh axes shard one trial's work. `inputs` is the same for all.
    """

    def on_device(trials, inputs):
        if jax.tree.leaves(trials)[0].shape[0] == 1:  # no loop around a single model
            trial = jax.tree.map(lambda x: x[0], trials)
            return jax.tree.map(lambda x: x[None], f(trial, inputs))
        return lax.map(lambda trial: f(trial, inputs), trials)

    return on_device if mesh.shape["sweep"] == 1 else over_sweep(on_device, mesh, P("sweep"))


def over_sweep(f: Callable[[Any, Any], Any], mesh: Mesh, out_specs: P) -> Callable[..., Any]:
    """Lifts `f(the trials of one device, inputs)` to all trials by `shard_map` over `sweep`.

    Axes of size 1 are made manual, too: TPU kernels compile only where no axis is automatic, and
    an inner `shard_map` would not take axes of size 1.
    """
    trivial_axes = {axis for axis, size in mesh.shape.items() if size == 1}
    return jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(P("sweep"), P()),
        out_specs=out_specs,
        axis_names={"sweep"} | trivial_axes,
        check_vma=False,
    )


def while_active(trials: int, active: Any, run: Any, skip: Any, *args: Any) -> Any:
    """Returns `run(*args)`, or for a trial that has ended `skip(shapes of the result, *args)`.

    There is no conditional for a single trial: training ends with it.
    """
    if trials == 1:
        return run(*args)
    run = jax.jit(run, inline=True)  # traced once
    result = jax.eval_shape(run, *args)
    return lax.cond(active, run, partial(skip, result), *args)


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def jit_on(mesh: Mesh) -> Callable[..., Any]:
    """Returns `jax.jit` with the compiler options of the mesh's platform.

    There are no options with `jax_disable_most_optimizations`.
    """
    options = {} if jax.config.read("jax_disable_most_optimizations") else COMPILER_OPTIONS
    return partial(jax.jit, compiler_options=options.get(mesh.devices.flat[0].platform))

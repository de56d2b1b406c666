"""The step and evaluation of one trial lifted to all trials, as jitted programs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped

from undo_jax.runtime.mesh import BATCH
from undo_jax.runtime.sharding import shardings, with_shardings
from undo_jax.training import optim, train_step
from undo_jax.training.batch_shapes import packed_like
from undo_jax.types import LM, Loss, Params, shapes

COMPILER_OPTIONS = {
    "cpu": {"xla_backend_optimization_level": 1}
}  # runs as fast as 3, compiles faster


class Programs(NamedTuple):
    """The jitted programs of a population; no array exists yet."""

    start: Wrapped  # (params of one model, keys, learning rates) -> states that start from it; with
    # `shares_frozen`: ((stacked models, init_index), keys, learning rates) -> states
    advance: Wrapped  # (states, (input_index, active, loss_kwargs), (refs, batch)) ->
    # (states, metrics)
    states: train_step.State  # shapes and shardings of the trials' states, [M, ...]
    loss_kwargs: Mapping[str, jax.ShapeDtypeStruct]  # that differ between trials, [M]


def build(
    lm: LM,
    loss: Loss,
    training: train_step.Training,
    ref_lms: Mapping[str, LM],
    mesh: Mesh,
    trials: int,
    trains: optim.Trains | None = None,
    loss_kwargs: Sequence[str] = (),
    shares_frozen: bool = False,
) -> Programs:
    """Returns the programs that train several models together. `advance` donates the states.

    Args:
        lm: the model that is trained.
        loss: the loss.
        training: steps, batch size and optimizer.
        ref_lms: the frozen models that the loss reads, by name.
        mesh: the devices.
        trials: M, the number of models.
        trains: which parameters train; None: all.
        loss_kwargs: keyword arguments of the loss whose values differ between trials.
        shares_frozen: whether the states hold only the parameters that train, see `optim.pick`.
            `advance` then also takes the models that trials start from, which have the others.
    """
    optimizer = optim.build(training.optimizer, training.steps)

    def advance_one(trial, inputs):
        state, input_index, active, kwargs = trial
        input_index, init_index = input_index if shares_frozen else (input_index, None)
        refs, tokens = _take(input_index, inputs[:2])
        batch = {name: train_step.rows(packed) for name, packed in tokens.items()}
        loss_fn = partial(loss, **kwargs) if kwargs else loss
        step = train_step.make_step(lm, loss_fn, optimizer, ref_lms, training.accumulation, trains)
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
        (_stacked_shapes(lm, 1), np.zeros(trials, np.int32)) if shares_frozen else shapes(lm)
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


def example_arguments(
    programs: Programs,
    refs: Mapping[str, LM],
    row_lengths: Mapping[str, int],
    rows: int,
    mesh: Mesh,
    inputs: int = 1,
    batch_fields: Sequence[str] = (),
    inits: tuple[LM, int] | None = None,
) -> tuple[Any, Any, Any]:
    """Returns the arguments of `programs.advance` as shapes and shardings.

    Args:
        programs: the programs.
        refs: the frozen models that the loss reads, by name.
        row_lengths: T of each stream, by name.
        rows: B, rows of a batch.
        mesh: the devices.
        inputs: the number of `TrialInputs`, each with its own references and streams.
        batch_fields: what the streams have beside tokens, see `Packed`.
        inits: the model that is trained, and how many different parameters trials start from;
            None unless the programs share frozen parameters.
    """
    trials = programs.states.step.shape[0]
    index, active = jax.eval_shape(lambda: (jnp.zeros(trials, int), jnp.ones(trials, bool)))
    place = NamedSharding(mesh, P(None, BATCH))

    def reference(lm: LM):
        stacked = jax.eval_shape(partial(_join_rounded, lm), *[shapes(lm)] * inputs)
        return with_shardings(stacked, lm.rules, mesh, (None,))

    def stream(time: int) -> Any:
        packed = packed_like((inputs, rows), time, batch_fields, refs)
        packed = jax.tree.map(lambda x: x.update(sharding=place), packed)
        return packed if batch_fields else packed.tokens

    batch = {name: stream(time) for name, time in row_lengths.items()}
    references = {name: reference(lm) for name, lm in refs.items()}
    if inits is None:
        return programs.states, (index, active, programs.loss_kwargs), (references, batch)
    lm, count = inits
    stacked = with_shardings(_stacked_shapes(lm, count), lm.rules, mesh, (None,))
    per_trial = (index, index), active, programs.loss_kwargs
    return programs.states, per_trial, (references, batch, stacked)


def _with_frozen(step: Any, trains: optim.Trains | None, frozen: Params) -> Any:
    """Returns a step of states that hold only what trains; the rest is in `frozen`."""

    def picked_step(state, refs, batch):
        complete = state._replace(params=optim.put(trains, frozen, state.params))
        state, metrics = step(complete, refs, batch)
        return state._replace(params=optim.pick(trains, state.params)), metrics

    return picked_step


def _stacked_shapes(lm: LM, count: int) -> Params:
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

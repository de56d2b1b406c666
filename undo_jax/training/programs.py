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

from undo_jax.runtime.compiler import jit_on
from undo_jax.runtime.sharding import with_shardings
from undo_jax.training import optim, train_step
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss, Params, shapes


@dataclass(frozen=True)
class TrainSpec:
    """What determines the step of one trial. Trials of equal specs can train in one population.

    Each population compiles programs of its own: they also depend on the number of its slots.
    """

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

    # (params of one model, keys, learning rates) -> states, all with these params; or, with
    # `shares_frozen`, ((stacked models, init_index), keys, learning rates) -> states
    initialise: Wrapped
    # (states, (input_index, active, loss_kwargs), (refs, batch)) -> (states, metrics); or, with
    # `shares_frozen`, (states, ((input_index, init_index), ...), (refs, batch, stacked models))
    advance: Wrapped
    states: train_step.State  # shapes and shardings of the slots' states, [M, ...]
    loss_kwargs: Mapping[str, jax.ShapeDtypeStruct]  # that differ between trials, [M]


def build(
    spec: TrainSpec,
    mesh: Mesh,
    slots: int,
    loss_kwargs: Sequence[str] = (),
    shares_frozen: bool = False,
) -> Programs:
    """Returns the programs that train the trials of all slots. `advance` donates the states.

    Args:
        spec: what the step depends on.
        mesh: the devices.
        slots: M, the number of slots.
        loss_kwargs: keyword arguments of the loss whose values differ between trials.
        shares_frozen: whether the states hold only the parameters that train, see `optim.pick`.
            `advance` then also takes the models that trials start from, which have the others.
    """
    lm, training, trains = spec.lm, spec.training, spec.trains
    optimizer = optim.build(training.optimizer, training.steps)

    def advance_one(slot, shared):
        state, indices, active, kwargs = slot
        input_index, init_index = indices if shares_frozen else (indices, None)
        refs, tokens = _take(input_index, shared[:2])
        batch = {name: train_step.rows(packed) for name, packed in tokens.items()}
        loss = partial(spec.loss, **kwargs) if kwargs else spec.loss
        step = train_step.make_step(lm, loss, optimizer, spec.refs, training.accumulation, trains)
        if shares_frozen:
            step = _with_frozen(step, trains, _take(init_index, shared[2]))
        skip = lambda result, state, *_: (state, zeros(result[1]))  # noqa: E731
        return while_active(slots, active, step, skip, state, refs, batch)

    def initialise_alike(params, keys, learning_rates):
        from_params = partial(train_step.initialise, params, optimizer=optimizer, trains=trains)
        return jax.vmap(from_params)(keys, learning_rates)

    def initialise_picked(inits, keys, learning_rates):
        stacked, init_index = inits
        picked = jax.vmap(partial(optim.pick, trains))(stacked)
        params = jax.tree.map(lambda x: x[init_index], picked)
        initialise_one = partial(train_step.initialise, optimizer=optimizer)
        return jax.vmap(initialise_one)(params, keys, learning_rates)

    # 1. States: slots are sharded over `sweep`, parameters and their moments by `lm.rules`
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), slots))
    rates = jax.ShapeDtypeStruct((slots,), jnp.float32)
    inits: Any = (stacked_shapes(lm, 1), np.zeros(slots, np.int32)) if shares_frozen else shapes(lm)
    initialise: Any = initialise_picked if shares_frozen else initialise_alike
    states = with_shardings(
        jax.eval_shape(initialise, inits, keys, rates), lm.rules, mesh, ("sweep",)
    )
    places = jax.tree.map(lambda x: x.sharding, states)
    replicated = NamedSharding(mesh, P())  # every process can read it

    # 2. The step of one trial, lifted to all slots
    advance_all, jit = over_slots(advance_one, mesh), jit_on(mesh)

    def advance(states, per_slot, shared):
        return advance_all((states, *per_slot), shared)

    return Programs(
        initialise=jit(initialise, out_shardings=places),
        advance=jit(advance, donate_argnums=0, out_shardings=(places, replicated)),
        states=states,
        loss_kwargs=dict.fromkeys(loss_kwargs, rates),
    )


def can_share_frozen(trains: optim.Trains | None, trials: int, inits: int, mesh: Mesh) -> bool:
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
    """Returns all parameters of a trial, given `picked`, those that its state holds.

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


def over_slots(f: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Lifts `f(slot, shared)` to slots stacked on a leading axis; `shared` is the same for all.

    Slots are sharded over `sweep`, by `shard_map` if it has several devices. Those of a device run
    one after another (`lax.map`). The other mesh axes shard the work of each slot.
    """

    def on_device(slots, shared):
        if jax.tree.leaves(slots)[0].shape[0] == 1:  # no loop around a single slot
            slot = jax.tree.map(lambda x: x[0], slots)
            return jax.tree.map(lambda x: x[None], f(slot, shared))
        return lax.map(lambda slot: f(slot, shared), slots)

    return on_device if mesh.shape["sweep"] == 1 else over_sweep(on_device, mesh, P("sweep"))


def over_sweep(f: Callable[[Any, Any], Any], mesh: Mesh, out_specs: P) -> Callable[..., Any]:
    """Lifts `f(the slots of one device, shared)` to all slots by `shard_map` over `sweep`.

    Axes of size 1 are made manual, too: TPU kernels compile only where no axis is automatic, and
    an inner `shard_map` would not take axes of size 1. Other axes stay automatic.
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


def while_active(slots: int, active: Any, run: Any, skip: Any, *args: Any) -> Any:
    """Returns `run(*args)`, or for a trial that has ended `skip(shapes of the result, *args)`.

    There is no conditional for a single slot: training ends with its trial.
    """
    if slots == 1:
        return run(*args)
    run = jax.jit(run, inline=True)  # traced once
    result = jax.eval_shape(run, *args)
    return lax.cond(active, run, partial(skip, result), *args)


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)

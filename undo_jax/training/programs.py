"""One model's step and evaluation lifted to all members, as jitted programs."""

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

COMPILING = {"cpu": {"xla_backend_optimization_level": 1}}  # runs as fast as 3, compiles faster


class Programs(NamedTuple):
    """The jitted programs of a population; no array exists yet."""

    start: Wrapped  # (params of one model, keys, learning rates) -> states of that model; or, with
    # `shared`, ((the models stacked, the index of each member's), keys, rates) -> states
    advance: Wrapped  # (states, (owners, active, numbers), (refs, batch)) -> (states, metrics)
    states: train_step.State  # shapes and shardings of the members' states, [M, ...]
    numbers: Mapping[str, jax.ShapeDtypeStruct]  # arguments of the loss by keyword, [M]


def build(
    lm: LM,
    loss: Loss,
    training: train_step.Training,
    ref_lms: Mapping[str, LM],
    mesh: Mesh,
    members: int,
    trains: optim.Trains | None = None,
    numbers: Sequence[str] = (),
    shared: bool = False,
) -> Programs:
    """The programs that train `members` models together. `advance` donates the states.

    `numbers` are keyword arguments of the loss whose values differ between members. With `shared`,
    the parameters in the states are those that train, see `optim.pick`, and `advance` also takes
    the models that members start from, which have the others.
    """
    optimizer = optim.build(training.optimizer, training.steps)

    def advance_one(member, inputs):
        state, owner, active, own = member
        owner, origin = owner if shared else (owner, None)
        refs, tokens = _of(owner, inputs[:2])
        batch = {name: train_step.rows(part) for name, part in tokens.items()}
        used = partial(loss, **own) if own else loss
        step = train_step.make_step(lm, used, optimizer, ref_lms, training.accumulation, trains)
        if shared:
            step = _beside(step, trains, _of(origin, inputs[2]))
        rest = lambda made, state, *_: (state, zeros(made[1]))  # noqa: E731
        return while_active(members, active, step, rest, state, refs, batch)

    def start(params, keys, rates):
        begin_one = lambda key, rate: train_step.start(params, key, rate, optimizer, trains)  # noqa: E731
        return jax.vmap(begin_one)(keys, rates)

    def start_beside(firsts, keys, rates):
        stacked, origins = firsts
        picked = jax.vmap(partial(optim.pick, trains))(stacked)
        own = jax.tree.map(lambda x: x[origins], picked)
        begin_one = lambda own, key, rate: train_step.start(own, key, rate, optimizer)  # noqa: E731
        return jax.vmap(begin_one)(own, keys, rates)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    rates = jax.ShapeDtypeStruct((members,), jnp.float32)
    one: Any = (_stacked_shapes(lm, 1), np.zeros(members, np.int32)) if shared else shapes(lm)
    begin: Any = start_beside if shared else start
    states = with_shardings(jax.eval_shape(begin, one, keys, rates), lm.rules, mesh, ("sweep",))
    places = jax.tree.map(lambda x: x.sharding, states)
    everywhere = NamedSharding(mesh, P())  # replicated: every process can read it
    lifted, jit = over_members(advance_one, mesh), jit_on(mesh)

    def advance(states, beside, inputs):
        return lifted((states, *beside), inputs)

    step = jit(advance, donate_argnums=0, out_shardings=(places, everywhere))
    begin = jit(begin, out_shardings=places)
    return Programs(begin, step, states, dict.fromkeys(numbers, rates))


def example(
    made: Programs,
    refs: Mapping[str, LM],
    streams: Mapping[str, int],
    rows: int,
    mesh: Mesh,
    inputs: int = 1,
    batch_fields: Sequence[str] = (),
    firsts: tuple[LM, int] | None = None,
) -> tuple[Any, Any, Any]:
    """Arguments of `made.advance` as shapes and shardings; `streams` gives each stream's T.

    `inputs` is the number of `Inputs`, each with its own references and streams; `batch_fields` is
    what the streams have beside tokens, see `Packed`; `firsts` the model that is trained, and from
    how many members start, where `made` shares them.
    """
    members = made.states.step.shape[0]
    owners, active = jax.eval_shape(lambda: (jnp.zeros(members, int), jnp.ones(members, bool)))
    place = NamedSharding(mesh, P(None, BATCH))

    def reference(lm: LM):
        stacked = jax.eval_shape(partial(_joined, lm), *[shapes(lm)] * inputs)
        return with_shardings(stacked, lm.rules, mesh, (None,))

    def stream(time: int) -> Any:
        made = packed_like((inputs, rows), time, batch_fields, refs)
        made = jax.tree.map(lambda x: x.update(sharding=place), made)
        return made if batch_fields else made.tokens

    batch = {name: stream(time) for name, time in streams.items()}
    references = {name: reference(lm) for name, lm in refs.items()}
    if firsts is None:
        return made.states, (owners, active, made.numbers), (references, batch)
    lm, count = firsts
    stacked = with_shardings(_stacked_shapes(lm, count), lm.rules, mesh, (None,))
    return made.states, ((owners, owners), active, made.numbers), (references, batch, stacked)


def _beside(step: Any, trains: optim.Trains | None, frozen: Params) -> Any:
    """A step of states whose parameters are those that train alone; the others are `frozen`'s."""

    def own(state, refs, batch):
        whole = state._replace(params=optim.put(trains, frozen, state.params))
        state, metrics = step(whole, refs, batch)
        return state._replace(params=optim.pick(trains, state.params)), metrics

    return own


def _stacked_shapes(lm: LM, count: int) -> Params:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), shapes(lm))


def _of(index: Any, stacked: Any) -> Any:
    """One of stacked arrays."""
    return jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[index], stacked)


def over_members(f: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Lift `f(member, inputs)` to members stacked on a leading axis.

    Members are sharded over `sweep` and run one after another within a device (`lax.map`), each as
    it would run alone; the other mesh axes shard one member's work. `inputs` is the same for all.
    """

    def on_device(members, inputs):
        if jax.tree.leaves(members)[0].shape[0] == 1:  # no loop around a single model
            one = jax.tree.map(lambda x: x[0], members)
            return jax.tree.map(lambda x: x[None], f(one, inputs))
        return lax.map(lambda member: f(member, inputs), members)

    return on_device if mesh.shape["sweep"] == 1 else over_sweep(on_device, mesh, P("sweep"))


def over_sweep(f: Callable[[Any, Any], Any], mesh: Mesh, out_specs: P) -> Callable[..., Any]:
    """Lift `f(a device's members, inputs)` to all members by `shard_map` over `sweep`.

    Axes of size 1 are made manual, too: TPU kernels compile only where no axis is automatic, and
    an inner `shard_map` would not take axes of size 1.
    """
    alone = {axis for axis, size in mesh.shape.items() if size == 1}
    return jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(P("sweep"), P()),
        out_specs=out_specs,
        axis_names={"sweep"} | alone,
        check_vma=False,
    )


def while_active(members: int, active: Any, run: Any, rest: Any, *given: Any) -> Any:
    """`run(*given)`, or for a member that has ended `rest(made, *given)`, of the result's shapes.

    Without a conditional in a population of one: it ends with its only member.
    """
    if members == 1:
        return run(*given)
    run = jax.jit(run, inline=True)  # traced once
    made = jax.eval_shape(run, *given)
    return lax.cond(active, run, partial(rest, made), *given)


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def jit_on(mesh: Mesh) -> Callable[..., Any]:
    """`jax.jit` with the compiler options of the mesh's platform.

    No options with `jax_disable_most_optimizations`.
    """
    known = {} if jax.config.read("jax_disable_most_optimizations") else COMPILING
    return partial(jax.jit, compiler_options=known.get(mesh.devices.flat[0].platform))


def references(lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    """Reference models stacked on a new replicated axis, as in `example`."""
    return _stacked(partial(_joined, lm), lm, trees, mesh)


def beginnings(lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    """The models that members start from, unrounded, stacked as references are."""
    return _stacked(lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), lm, trees, mesh)


def _stacked(join: Callable[..., Params], lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    places = shardings(jax.eval_shape(join, *trees), lm.rules, mesh, (None,))
    return jax.jit(join, out_shardings=places)(*trees)


def _joined(lm: LM, *trees: Params) -> Params:
    """Stack and round them once, not in every step."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(lm.rounded, trees))

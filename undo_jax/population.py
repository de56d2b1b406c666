"""Many models as one program: a leading axis of members, spread over the `sweep` mesh axis."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Lowered, Wrapped
from jaxtyping import Array, Bool, Int

from undo_jax import memory, optim, train
from undo_jax.log import Log
from undo_jax.mesh import BATCH, check_batch
from undo_jax.progress import Progress
from undo_jax.sharding import assemble, placed, placement, shardings
from undo_jax.types import LM, Key, Lazy, Loss, Metrics, Params, shapes

LOG_EVERY = 10  # steps between records; twice as many are under way, and from 33 on CPUs hang
COMPILING = {"cpu": {"xla_backend_optimization_level": 1}}  # as fast as at 3, and made sooner
Scores = dict[str, float]


class Member(NamedTuple):
    """One model to train."""

    params: Lazy  # those that begin as one model share it: it is asked once
    key: Key
    learning_rate: float
    source: "Source"


@dataclass(frozen=True, eq=False)
class Source:
    """What members of one seed share: streams of rows, and reference models. Equal by identity."""

    streams: Mapping[str, Any]  # streams[name][step, rows] -> int32 [B, T+1]
    refs: Mapping[str, tuple[LM, Lazy]]  # nothing but what trains is held while it trains


class Task(NamedTuple):
    """What a population is trained to do, and how a model is scored on the way."""

    lm: LM
    loss: Loss
    training: train.Training
    evaluate: Callable[[LM, Params, Any], Metrics]  # scores one model on `material`
    material: Any  # a pytree of arrays
    stops: Sequence[Callable[[Scores], bool]]  # for each member: have these scores reached its end?
    row_length: int  # T of every stream
    trains: optim.Trains | None = None  # None: everything


class Result(NamedTuple):
    """One trained model."""

    params: Lazy  # taken off the `sweep` axis when asked for
    steps: int  # updates made
    scores: Scores  # of its last evaluation


def fit(
    task: Task,
    mesh: Mesh,
    members: Sequence[Member],
    log: Log,
    progress: Progress | None = None,
) -> list[Result]:
    """Train every member until its stop rule, tried at each evaluation, or the last step.

    One whose scores are not finite leaves, too: nothing brings it back. With `progress` it goes on
    from the last save there is, and is saved on the way. Raises ValueError where the mesh does not
    divide the batch, and what `Progress.between` does.
    """
    training, sources = task.training, list(dict.fromkeys(member.source for member in members))
    check_batch(mesh, training.batch_size, training.accumulation)
    lanes = deal(len(members), mesh.shape["sweep"])  # the member in each lane
    in_lanes = [members[max(member, 0)] for member in lanes]
    like, start, advance, score = _programs(task, mesh, in_lanes, sources)
    loop = _resume(progress, like, lanes, log) if progress else None
    loop = loop or _Loop(0, start(), np.array([member >= 0 for member in lanes]), {})
    meter = _Meter(log, lanes)
    while True:
        if progress:
            progress.between(loop.step, lambda: loop.capture(meter))
        if loop.step % training.eval_every == 0 or loop.step == training.steps:
            _evaluate(task, loop, score, meter)
        if not loop.active.any():
            break
        batch = _read(sources, loop.step, training.batch_size, mesh)
        loop.states, metrics = advance(loop.states, batch, loop.active)
        loop.step += 1
        meter.step(loop.step, loop.active, metrics, batch)
    if progress:
        progress.end(loop.step, lambda: loop.capture(meter))
    steps, params, results = _fetch(loop.states.step, mesh), loop.states.params, []
    take = _taker(task.lm, mesh)

    def taken(lane: int) -> Params:
        # one after another: devices of a CPU that exchange data in two programs at once may each
        # wait in another one, for good
        return jax.block_until_ready(take(params, lane))

    for member in range(len(members)):
        lane = lanes.index(member)
        results.append(Result(partial(taken, lane), int(steps[lane]), loop.scores[member]))
    return results


@dataclass
class _Loop:
    """Where a training loop stands between two steps."""

    step: int
    states: train.State  # of every lane
    active: np.ndarray  # whether each lane trains on
    scores: dict[int, Scores]  # of each member's last evaluation

    def capture(self, meter: "_Meter") -> tuple[train.State, dict[str, Any]]:
        """All that `_resume` needs, as arrays and JSON."""
        meter.flush()
        notes = {
            "lanes": list(meter.lanes),
            "active": self.active.tolist(),
            "scores": {str(member): scores for member, scores in self.scores.items()},
            "records": list(meter.log.history),
        }
        return self.states, notes


def _resume(progress: Progress, like: train.State, lanes: list[int], log: Log) -> _Loop | None:
    """The loop of the last save, if there is one; its lanes may have been others."""

    def saved(notes):
        _check_notes(notes, lanes, len(log.targets))
        count = len(notes["lanes"])
        return like if notes["lanes"] == lanes else jax.tree.map(partial(_resize, count), like)

    found = progress.restore(saved)
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
    return _Loop(found.step, states, active, scores)


def _check_notes(notes: Any, lanes: list[int], targets: int) -> None:
    """Raises ValueError for what `_Loop.capture` has not written of these members."""
    members, records = {max(member, 0) for member in lanes}, notes["records"]
    known = {*notes["lanes"]} - {-1} == members
    full = len(notes["active"]) == len(notes["lanes"])
    scored = {int(member) for member in notes["scores"]} <= members
    scored &= all(isinstance(scores, dict) for scores in notes["scores"].values())
    logged = all(0 <= member < targets and isinstance(line, str) for member, line in records)
    if not (known and full and scored and logged):
        raise ValueError("its notes are of other members, or damaged")


def _resize(lanes: int, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same leaf of another number of lanes, over `sweep` where that divides it."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    lead = None if lanes % mesh.shape["sweep"] else "sweep"
    place = NamedSharding(mesh, P(lead, *spec[1:]))
    return jax.ShapeDtypeStruct((lanes, *leaf.shape[1:]), leaf.dtype, sharding=place)


def _evaluate(task: Task, loop: _Loop, score: Any, meter: "_Meter") -> None:
    """Score the members that still train; those that have reached their end leave."""
    if not loop.active.any():
        return
    meter.flush()  # records are in the order of their steps
    table = jax.device_get(score(loop.states.params, loop.active))
    for lane in np.flatnonzero(loop.active).tolist():
        member = meter.lanes[lane]
        found = {name: float(column[lane]) for name, column in table.items()}
        meter.log.record(member, step=loop.step, eval=found)
        loop.scores[member] = found
        ends = diverged(found) or loop.step >= task.training.steps or task.stops[member](found)
        loop.active[lane] = not ends


def diverged(scores: Scores) -> bool:
    """Whether a model is lost: a score of it is not finite."""
    return not all(map(math.isfinite, scores.values()))


def over_members(f: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Lift `f(member, shared)` to members stacked on a leading axis.

    Members are sharded over `sweep` and run one after another within a device, each as it would run
    alone; the other mesh axes shard the work inside a member. `shared` is the same for all.
    """

    def on_device(members, shared):
        if jax.tree.leaves(members)[0].shape[0] == 1:  # no loop around a single model
            one = jax.tree.map(lambda x: x[0], members)
            return jax.tree.map(lambda x: x[None], f(one, shared))
        return lax.map(lambda member: f(member, shared), members)

    return on_device if mesh.shape["sweep"] == 1 else _over_sweep(on_device, mesh, P("sweep"))


def _over_sweep(f: Callable[[Any, Any], Any], mesh: Mesh, out_specs: P) -> Callable[..., Any]:
    """Lift `f(a device's members, shared)` to all members.

    Axes of one device are taken along: kernels for TPU compile only where no axis is left to XLA,
    and inside there is nothing to split that would take them.
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


def deal(count: int, hands: int) -> list[int]:
    """Lanes for `count` members, dealt in turn to `hands` devices; -1 marks an empty lane.

    Neighbours in a list tend to cost the same (one alpha after another), so dealing balances.
    """
    rounds = -(-count // hands)
    order = [hand + hands * turn for hand in range(hands) for turn in range(rounds)]
    return [member if member < count else -1 for member in order]


class Program(NamedTuple):
    """The jitted programs of a population; no array exists yet."""

    start: Wrapped  # (params of one model, keys, learning rates) -> states of that model
    advance: Wrapped  # ((states, owners, active), (refs, batch)) -> (states, metrics)
    states: train.State  # shapes and shardings of the members' states, [M, ...]


def program(
    lm: LM,
    loss: Loss,
    training: train.Training,
    ref_lms: Mapping[str, LM],
    mesh: Mesh,
    members: int,
    trains: optim.Trains | None = None,
) -> Program:
    """What trains `members` models together. `advance` takes the states' memory (donation)."""
    optimizer = optim.build(training.optimizer, training.steps)
    step = train.make_step(lm, loss, optimizer, ref_lms, training.accumulation, trains)

    def advance_one(member, shared):
        state, owner, active = member
        refs, tokens = jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[owner], shared)
        batch = {name: train.rows(part) for name, part in tokens.items()}
        rest = lambda made, state, *_: (state, _zeros(made[1]))  # noqa: E731
        return _while_active(members, active, step, rest, state, refs, batch)

    def start(params, keys, rates):
        begin_one = lambda key, rate: train.start(params, key, rate, optimizer, trains)  # noqa: E731
        return jax.vmap(begin_one)(keys, rates)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    rates = jax.ShapeDtypeStruct((members,), jnp.float32)
    states = placed(jax.eval_shape(start, shapes(lm), keys, rates), lm.rules, mesh, ("sweep",))
    places = jax.tree.map(lambda x: x.sharding, states)
    everywhere = NamedSharding(mesh, P())  # so that every process can read it
    jit = _jit_on(mesh)
    advance = jit(
        over_members(advance_one, mesh), donate_argnums=0, out_shardings=(places, everywhere)
    )
    return Program(jit(start, out_shardings=places), advance, states)


def _while_active(members: int, active: Any, run: Any, rest: Any, *given: Any) -> Any:
    """`run(*given)`, or after a member's end `rest(made, *given)`, made being the result's shapes.

    A population of one ends with its only member: nothing is asked.
    """
    if members == 1:
        return run(*given)
    run = jax.jit(run, inline=True)  # traced once
    made = jax.eval_shape(run, *given)
    return lax.cond(active, run, partial(rest, made), *given)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _jit_on(mesh: Mesh) -> Callable[..., Any]:
    """`jax.jit` with the compiler options of the mesh's platform.

    Where JAX leaves most optimisations out, it does so here too.
    """
    known = {} if jax.config.read("jax_disable_most_optimizations") else COMPILING
    return partial(jax.jit, compiler_options=known.get(mesh.devices.flat[0].platform))


def example(
    made: Program,
    refs: Mapping[str, LM],
    streams: Mapping[str, int],
    rows: int,
    mesh: Mesh,
    sources: int = 1,
) -> tuple[Any, Any]:
    """Arguments of `made.advance` as shapes and shardings; streams by name, with their T.

    `sources` says of how many `Source`s the members are, each with its own references and streams.
    """
    members = made.states.step.shape[0]
    owners, active = jax.eval_shape(lambda: (jnp.zeros(members, int), jnp.ones(members, bool)))

    def reference(lm: LM):
        stacked = jax.eval_shape(partial(_joined, lm), *[shapes(lm)] * sources)
        return placed(stacked, lm.rules, mesh, (None,))

    place = NamedSharding(mesh, P(None, BATCH))
    batch = {
        name: jax.ShapeDtypeStruct((sources, rows, time + 1), jnp.int32, sharding=place)
        for name, time in streams.items()
    }
    return (made.states, owners, active), ({k: reference(lm) for k, lm in refs.items()}, batch)


def _programs(task: Task, mesh: Mesh, members: Sequence[Member], sources: Sequence[Source]):
    """What the stacked states are like, and steps; the first that is called compiles them all.

    start() -> states; advance(states, batch, active) -> states, metrics; score(params, active).
    """
    ref_lms = {name: lm for name, (lm, _) in sources[0].refs.items()}
    made = program(task.lm, task.loss, task.training, ref_lms, mesh, len(members), task.trains)
    models = list(dict.fromkeys(member.params for member in members))
    own = (
        jnp.stack([member.key for member in members]),
        np.array([member.learning_rate for member in members], np.float32),
    )
    owners = np.array([sources.index(member.source) for member in members])
    refs = {
        name: references(lm, [source.refs[name][1]() for source in sources], mesh)
        for name, lm in ref_lms.items()
    }
    evaluate, rows = partial(task.evaluate, task.lm), task.training.batch_size

    def score_one(member, material):
        params, active = member
        rest = lambda made, *_: _zeros(made)  # noqa: E731
        return _while_active(len(members), active, evaluate, rest, params, material)

    def lowered() -> Iterator[Lowered]:
        """What takes the longest to compile comes first."""
        lengths = dict.fromkeys(sources[0].streams, task.row_length)
        count = len(sources)
        given = example(made, ref_lms, lengths, rows, mesh, count)
        yield made.advance.lower(*given)
        (states, _, active), _ = given
        everywhere = NamedSharding(mesh, P())
        score_all = _jit_on(mesh)(over_members(score_one, mesh), out_shardings=everywhere)
        yield score_all.lower((states.params, active), task.material)
        model = placed(shapes(task.lm), task.lm.rules, mesh)
        yield made.start.lower(model, *own)
        if len(models) > 1:
            places = jax.tree.map(lambda x: x.sharding, states.params)
            put = _jit_on(mesh)(_put, donate_argnums=0, out_shardings=places)
            yield put.lower(states.params, model, active)

    @cache
    def compiled() -> list[Compiled]:
        """Side by side, the first while the next is lowered: XLA compiles mostly on one core."""
        with ThreadPoolExecutor() as pool:
            made = list(pool.map(Lowered.compile, lowered()))
        if found := made[0].memory_analysis():
            needed = found.argument_size_in_bytes + found.temp_size_in_bytes
            count = len({id(member) for member in members})  # of empty lanes the first one
            what = f"{count} models trained together on batches of {rows} rows"
            memory.check(what, needed, memory.of_device(mesh), "each device's memory")
        return made

    def advance(states, batch, active):
        return compiled()[0]((states, owners, active), (refs, batch))

    def score(params, active):
        return compiled()[1]((params, active), task.material)

    def start():
        """Models are read one after another, each into the lanes of its members."""
        _, _, begin, *put = compiled()
        place, (first, *others) = placement(task.lm, mesh), models
        states = begin(jax.device_put(first(), place), *own)
        for model in others:
            here = np.array([member.params is model for member in members])
            params = put[0](states.params, jax.device_put(model(), place), here)
            states = states._replace(params=params)
        return states

    return made.states, start, advance, score


def _read(
    sources: Sequence[Source], step: int, batch_size: int, mesh: Mesh
) -> dict[str, Int[Array, "S B T+1"]]:
    """Batch `step` of every source's streams, [S, B, T+1]; each process reads its own rows."""

    def read(name: str, rows: slice) -> np.ndarray:
        return np.stack([source.streams[name][step, rows] for source in sources])

    return {name: assemble(mesh, batch_size, partial(read, name)) for name in sources[0].streams}


def references(lm: LM, trees: Sequence[Params], mesh: Mesh) -> Params:
    """Reference models on a new leading axis, which is not sharded; as `example` describes them."""
    join = partial(_joined, lm)
    places = shardings(jax.eval_shape(join, *trees), lm.rules, mesh, (None,))
    return jax.jit(join, out_shardings=places)(*trees)


def _joined(lm: LM, *trees: Params) -> Params:
    """Rounded as the step reads them: once, not in every step."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(lm.rounded, trees))


def _put(stacked: Params, params: Params, here: Bool[Array, " M"]) -> Params:
    """Stacked parameters [M, ...] with a model's own in some lanes."""

    def of_leaf(all_of, one):
        return jnp.where(here.reshape(-1, *[1] * one.ndim), one, all_of)

    return jax.tree.map(of_leaf, stacked, params)


def _taker(lm: LM, mesh: Mesh) -> Callable[[Params, int], Params]:
    """What takes one lane of stacked parameters, sharded as a model alone is.

    Over `sweep` the one lane travels; a plain index would gather the whole stack on every device.
    """

    def alone(stacked: Params, lane):
        return jax.tree.map(lambda w: w[lane], stacked)

    def of_device(stacked: Params, lane):
        lanes = jax.tree.leaves(stacked)[0].shape[0]
        place = lane - lanes * lax.axis_index("sweep")
        here = (0 <= place) & (place < lanes)
        found = alone(stacked, jnp.clip(place, 0, lanes - 1))
        return jax.tree.map(lambda w: lax.psum(jnp.where(here, w, 0), "sweep"), found)

    take = alone if mesh.shape["sweep"] == 1 else _over_sweep(of_device, mesh, P())
    return jax.jit(take, out_shardings=placement(lm, mesh))


def _fetch(tree: Any, mesh: Mesh) -> Any:
    """Arrays as numpy, on every process."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree))


class _Meter:
    """Training records, fetched one record late so that no step waits for the log."""

    def __init__(self, log: Log, lanes: Sequence[int]):
        self.log, self.lanes, self.waiting = log, lanes, None
        self.started, self.tokens = 0.0, 0  # counted from the first record: not the compilation

    def step(self, step: int, active: np.ndarray, metrics: Metrics, batch: Mapping[str, jax.Array]):
        if self.started:
            tokens = sum(rows.shape[1] * (rows.shape[2] - 1) for rows in batch.values())
            self.tokens += int(active.sum()) * tokens
        if step % LOG_EVERY == 0:
            self.flush()
            self.waiting = step, active.copy(), metrics

    def flush(self):
        if self.waiting is None:
            return
        (step, active, metrics), self.waiting = self.waiting, None
        metrics, now = jax.device_get(metrics), time.perf_counter()
        self.started = self.started or now
        rate = self.tokens / max(now - self.started, 1e-9)
        for lane in np.flatnonzero(active).tolist():
            found = {name: float(value[lane]) for name, value in metrics.items()}
            self.log.record(self.lanes[lane], step=step, **found, tokens_per_second=rate)
        self.log.progress(step, float(metrics["loss"][active].mean()), rate)

"""Many models as one program: a leading axis of members, spread over the `sweep` mesh axis."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped

from undo_jax import optim, train
from undo_jax.log import Log
from undo_jax.sharding import BATCH, check_batch, check_sweep, shardings
from undo_jax.types import LM, Key, Loss, Metrics, Params, Rules

LOG_EVERY = 10  # steps between two training records
Scores = dict[str, float]


class Member(NamedTuple):
    """One model to train."""

    params: Params
    key: Key
    learning_rate: float
    source: "Source"


@dataclass(frozen=True, eq=False)
class Source:
    """What members of one seed share: streams of rows, and reference models. Equal by identity."""

    streams: Mapping[str, Any]  # streams[name][step] -> int32 [B, T+1]
    refs: Mapping[str, tuple[LM, Params]]


class Task(NamedTuple):
    """What a population is trained to do, and how a model is scored on the way."""

    lm: LM
    loss: Loss
    training: train.Training
    evaluate: Callable[[LM, Params, Any], Metrics]  # scores one model on `material`
    material: Any  # a pytree of arrays
    stops: Sequence[Callable[[Scores], bool]]  # for each member: have these scores reached its end?


class Result(NamedTuple):
    """One trained model."""

    params: Params
    steps: int  # updates made
    scores: Scores  # of its last evaluation


def fit(task: Task, mesh: Mesh, members: Sequence[Member], log: Log) -> list[Result]:
    """Train every member until its stop rule, tried at each evaluation, or the last step.

    Raises ValueError where the mesh does not divide the batch.
    """
    training, sources = task.training, list(dict.fromkeys(member.source for member in members))
    check_batch(mesh, training.batch_size, training.accumulation)
    lanes = deal(len(members), mesh.shape["sweep"])  # the member in each lane
    active = np.array([member >= 0 for member in lanes])
    states, advance, score = _programs(task, mesh, [members[max(m, 0)] for m in lanes], sources)
    scores: dict[int, Scores] = {}
    meter = _Meter(log, lanes)
    for step in range(training.steps + 1):
        if step % training.eval_every == 0 or step == training.steps:
            table = jax.device_get(score(states.params, task.material))
            for lane in np.flatnonzero(active).tolist():
                found = {name: float(column[lane]) for name, column in table.items()}
                log.record(lanes[lane], step=step, eval=found)
                scores[lanes[lane]] = found
                active[lane] = step < training.steps and not task.stops[lanes[lane]](found)
        if not active.any():
            break
        batch = {
            name: np.stack([source.streams[name][step] for source in sources])
            for name in sources[0].streams
        }
        states, metrics = advance(states, batch, active)
        meter.step(step + 1, active, metrics, batch)
    meter.flush()
    steps = jax.device_get(states.step)
    order = [lanes.index(member) for member in range(len(members))]
    return [
        Result(_take(states.params, lane), int(steps[lane]), scores[member])
        for member, lane in enumerate(order)
    ]


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

    check_sweep(mesh)
    if mesh.shape["sweep"] == 1:
        return on_device
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P("sweep"), P()),
        out_specs=P("sweep"),
        axis_names={"sweep"},
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

    start: Wrapped  # (params of each member, keys, learning rates) -> states
    advance: Wrapped  # ((states, owners, active), (refs, batch)) -> (states, metrics)
    states: train.State  # shapes and shardings of the members' states, [M, ...]


def program(
    lm: LM,
    loss: Loss,
    training: train.Training,
    ref_lms: Mapping[str, LM],
    mesh: Mesh,
    members: int,
) -> Program:
    """What trains `members` models together. `advance` takes the states' memory (donation)."""
    optimizer = optim.build(training.optimizer, training.steps)
    step = train.make_step(lm, loss, optimizer, ref_lms, training.accumulation)

    def advance_one(member, shared):
        state, owner, active = member
        refs, tokens = jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[owner], shared)
        batch = {name: train.rows(part) for name, part in tokens.items()}
        if members == 1:
            return step(state, refs, batch)
        metrics = jax.eval_shape(step, state, refs, batch)[1]
        rest = lambda state: (state, jax.tree.map(jnp.zeros_like, metrics))  # noqa: E731
        return lax.cond(active, lambda state: step(state, refs, batch), rest, state)

    def start(params, keys, rates):
        begin_one = lambda p, k, r: train.start(p, k, r, optimizer)  # noqa: E731
        return jax.vmap(begin_one)(_join(*params), keys, rates)

    def fresh():
        keys = jax.random.split(jax.random.key(0), members)
        return start([lm.init(key) for key in keys], keys, jnp.ones(members))

    states = _placed(jax.eval_shape(fresh), lm.rules, mesh, ("sweep",))
    placement = jax.tree.map(lambda x: x.sharding, states)
    advance = jax.jit(
        over_members(advance_one, mesh), donate_argnums=0, out_shardings=(placement, None)
    )
    return Program(jax.jit(start, out_shardings=placement), advance, states)


def example(
    made: Program, refs: Mapping[str, LM], streams: Mapping[str, int], rows: int, mesh: Mesh
) -> tuple[Any, Any]:
    """Arguments of `made.advance` as shapes and shardings; streams by name, with their T."""
    members = made.states.step.shape[0]
    owners, active = jax.eval_shape(lambda: (jnp.zeros(members, int), jnp.ones(members, bool)))
    alone = lambda lm: jax.eval_shape(lambda: _join(lm.init(jax.random.key(0))))  # noqa: E731
    frozen = {name: _placed(alone(lm), lm.rules, mesh, (None,)) for name, lm in refs.items()}
    place = NamedSharding(mesh, P(None, BATCH))
    batch = {
        name: jax.ShapeDtypeStruct((1, rows, time + 1), jnp.int32, sharding=place)
        for name, time in streams.items()
    }
    return (made.states, owners, active), (frozen, batch)


def _programs(task: Task, mesh: Mesh, members: Sequence[Member], sources: Sequence[Source]):
    """The stacked states and the jitted steps: advance(states, batch, active), score(params)."""
    ref_lms = {name: lm for name, (lm, _) in sources[0].refs.items()}
    made = program(task.lm, task.loss, task.training, ref_lms, mesh, len(members))
    states = made.start(
        [member.params for member in members],
        jnp.stack([member.key for member in members]),
        jnp.array([member.learning_rate for member in members], jnp.float32),
    )
    owners = np.array([sources.index(member.source) for member in members])
    refs = {
        name: _stack([source.refs[name][1] for source in sources], lm.rules, mesh)
        for name, lm in ref_lms.items()
    }
    rows = NamedSharding(mesh, P(None, BATCH))

    def advance(states, batch, active):
        return made.advance((states, owners, active), (refs, jax.device_put(batch, rows)))

    score = jax.jit(over_members(lambda p, material: task.evaluate(task.lm, p, material), mesh))
    return states, advance, score


def _placed(tree: Any, rules: Rules, mesh: Mesh, lead: tuple[str | None, ...]) -> Any:
    """Shapes with their shardings."""
    place = shardings(tree, rules, mesh, lead)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, place
    )


def _stack(trees: Sequence[Params], rules: Rules, mesh: Mesh) -> Params:
    """Parameters of several models on a new leading axis, which is not sharded."""
    placement = shardings(jax.eval_shape(_join, *trees), rules, mesh, (None,))
    return jax.jit(_join, out_shardings=placement)(*trees)


def _join(*trees: Params) -> Params:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@jax.jit
def _take(tree: Params, index: int) -> Params:
    """Entry `index` of stacked parameters."""
    return jax.tree.map(lambda x: x[index], tree)


class _Meter:
    """Training records, fetched one record late so that no step waits for the log."""

    def __init__(self, log: Log, lanes: Sequence[int]):
        self.log, self.lanes, self.waiting = log, lanes, None
        self.started, self.tokens = 0.0, 0  # counted from the first record: not the compilation

    def step(
        self, step: int, active: np.ndarray, metrics: Metrics, batch: Mapping[str, np.ndarray]
    ):
        if self.started:
            self.tokens += int(active.sum()) * sum(rows[0, :, 1:].size for rows in batch.values())
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

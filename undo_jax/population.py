"""Many models as one program: a leading axis of members, spread over the `sweep` mesh axis."""

import time
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
from jaxtyping import Array, Int

from undo_jax import optim, train
from undo_jax.log import Log
from undo_jax.sharding import assemble, check_batch, check_sweep, shardings
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

    streams: Mapping[str, Any]  # streams[name][step, rows] -> int32 [B, T+1]
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
        batch = _read(sources, step, training.batch_size, mesh)
        states, metrics = advance(states, batch, active)
        meter.step(step + 1, active, metrics, batch)
    meter.flush()
    steps = _fetch(states.step, mesh)
    order, take = [lanes.index(member) for member in range(len(members))], _taker(task.lm, mesh)
    return [
        Result(take(states.params, lane), int(steps[lane]), scores[member])
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


def _programs(task: Task, mesh: Mesh, members: Sequence[Member], sources: Sequence[Source]):
    """The stacked states and the jitted steps: advance(states, batch, active), score(params)."""
    training = task.training
    optimizer = optim.build(training.optimizer, training.steps)
    ref_lms = {name: lm for name, (lm, _) in sources[0].refs.items()}
    step = train.make_step(task.lm, task.loss, optimizer, ref_lms, training.accumulation)

    def advance_one(member, shared):
        state, owner, active = member
        refs, tokens = jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[owner], shared)
        batch = {name: train.rows(part) for name, part in tokens.items()}
        if len(members) == 1:
            return step(state, refs, batch)
        metrics = jax.eval_shape(step, state, refs, batch)[1]
        rest = lambda state: (state, jax.tree.map(jnp.zeros_like, metrics))  # noqa: E731
        return lax.cond(active, lambda state: step(state, refs, batch), rest, state)

    def start(params, keys, rates):
        begin_one = lambda p, k, r: train.start(p, k, r, optimizer)  # noqa: E731
        return jax.vmap(begin_one)(_join(*params), keys, rates)

    everywhere = NamedSharding(mesh, P())  # so that every process can read it
    begin = (
        [member.params for member in members],
        jnp.stack([member.key for member in members]),
        np.array([member.learning_rate for member in members], np.float32),
    )
    placement = shardings(jax.eval_shape(start, *begin), task.lm.rules, mesh, ("sweep",))
    states = jax.jit(start, out_shardings=placement)(*begin)
    owners = np.array([sources.index(member.source) for member in members])
    refs = {
        name: _stack([source.refs[name][1] for source in sources], lm.rules, mesh)
        for name, lm in ref_lms.items()
    }
    advance_all = jax.jit(
        over_members(advance_one, mesh), donate_argnums=0, out_shardings=(placement, everywhere)
    )

    def advance(states, batch, active):
        return advance_all((states, owners, active), (refs, batch))

    score_all = over_members(lambda p, material: task.evaluate(task.lm, p, material), mesh)
    score = jax.jit(score_all, out_shardings=everywhere)
    return states, advance, score


def _read(
    sources: Sequence[Source], step: int, batch_size: int, mesh: Mesh
) -> dict[str, Int[Array, "S B T+1"]]:
    """Batch `step` of every source's streams, [S, B, T+1]; each process reads its own rows."""

    def read(name: str, rows: slice) -> np.ndarray:
        return np.stack([source.streams[name][step, rows] for source in sources])

    return {name: assemble(mesh, batch_size, partial(read, name)) for name in sources[0].streams}


def _stack(trees: Sequence[Params], rules: Rules, mesh: Mesh) -> Params:
    """Parameters of several models on a new leading axis, which is not sharded."""
    placement = shardings(jax.eval_shape(_join, *trees), rules, mesh, (None,))
    return jax.jit(_join, out_shardings=placement)(*trees)


def _join(*trees: Params) -> Params:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


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

    if mesh.shape["sweep"] == 1:
        take = alone
    else:
        take = jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(P("sweep"), P()),
            out_specs=P(),
            axis_names={"sweep"},
            check_vma=False,
        )
    wanted = jax.eval_shape(lm.init, jax.random.key(0))
    return jax.jit(take, out_shardings=shardings(wanted, lm.rules, mesh))


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

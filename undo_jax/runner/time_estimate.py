"""How fast models train and are evaluated: by the records of finished ones, or measured here."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from undo_jax.fit import bench
from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.train_specs import train_spec
from undo_jax.runner.trials import RunContext
from undo_jax.runtime.atomic_files import read_json
from undo_jax.runtime.process_watch import agreed
from undo_jax.training.meter import LOG_EVERY
from undo_jax.training.train_spec import TrainSpec
from undo_jax.types import LM

LONG = 20.0  # seconds that a measurement may take; what would take longer is computed from FLOPs
QUICK = 1.0  # what takes less is measured over more steps
SIDE = 1024  # of the square matrices whose product tells how fast the devices can be at best


@dataclass(frozen=True)
class Pace:
    """Seconds of one model in each group of the `sweep` axis, all of them side by side."""

    step: float
    evaluation: float  # 0 where it is part of `step`
    start: float  # compilation, and what else comes before the first steps, once per program
    basis: Literal["records", "measured", "FLOPs"]
    share: float = 1.0  # of its steps that a training takes, where a stop rule may end it earlier


class Record(NamedTuple):
    """What finished models that trained together tell of their speed."""

    like: str  # see `likeness`
    members: int
    rate: float  # FLOPs per second of all of them, evaluations and saves included
    cost: float  # FLOPs per token
    tokens: int  # of one model
    share: float  # of their steps that they took
    stop_early: bool | None  # whether a stop rule could end them; None: the kind has none
    start: float  # seconds until the 10th step or so, most of them compilation


def paces(
    run: RunContext, programs: Mapping[str, ModelNode], records: Sequence[Record]
) -> dict[str, Pace]:
    """The pace of each program, of which one model is given, by the keys of `programs`.

    In this order: by records of trainings that are alike, by measuring it, by its FLOPs.
    """
    scored: dict[LM, bench.Speed] = {}  # evaluations, each measured once
    return {key: _pace(run, model, records, scored) for key, model in programs.items()}


def _pace(
    run: RunContext, model: ModelNode, records: Sequence[Record], scored: dict[LM, bench.Speed]
) -> Pace:
    doing = train_spec(model.recipe, run.setting)  # type: ignore[arg-type]
    known = _by_records(run, model, doing, records)
    if not math.isnan(known.step):
        return known
    fastest, step_flops = _fastest(run), bench.flops(doing).total * doing.tokens
    tokens = sum(x.size for x in jax.tree.leaves(run.eval_data) if x.dtype.kind == "i")
    step = step_flops / fastest
    evaluation = tokens * doing.lm.forward_flops(doing.row_length) / fastest
    steps = 20 if 40 * step < QUICK else 3
    if (bench.WARM + 2 * steps) * step + 2 * evaluation > LONG:
        return Pace(step, evaluation, 0.0, "FLOPs")
    with _uncached():
        trained = bench.measure(doing, run.mesh, steps)
        if doing.lm not in scored:
            how = run.setting.evaluate, run.eval_data, run.mesh
            scored[doing.lm] = bench.measure_evaluation(doing, *how)
    start = trained.compile_seconds + scored[doing.lm].compile_seconds
    step, evaluation, start = agreed([trained.seconds, scored[doing.lm].seconds, start]).tolist()
    return Pace(step, evaluation, start, "measured")


def likeness(description: Mapping[str, Any]) -> str:
    """A text that is equal for artifacts whose trainings take about equally long per FLOP.

    `description` is what config.json states. Equal are: kind, model, setting, batch, how often it
    is evaluated. Raises KeyError for what was not trained.
    """
    kind, config = description["stage"], description["config"]
    training = _training(config[kind])
    sizes = {name: training[name] for name in ("batch_size", "eval_every", "accumulation")}
    return json.dumps([kind, config["model"], config["setting"], sizes], sort_keys=True)


def _training(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The training of a recipe, or of its attack."""
    return settings["training"] if "training" in settings else settings["attack"]["training"]


def read_records(workdir: epath.Path) -> list[Record]:
    """Records of all finished models in a workdir; those that trained together are one.

    Members of a population have the same number for tokens per second at the same step.
    """
    populations: dict[Any, list[_Member]] = {}
    for path in workdir.glob("*/summary.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            described, summary = read_json(path.parent / "config.json"), read_json(path)
            like, own = likeness(described), described["config"][described["stage"]]
            cost, share = summary["flops"] / summary["tokens"], _training(own)["steps"]
            share, wall = summary["steps"] / share, _seconds(path.parent)
            for rates in _rates(path.parent / "metrics.jsonl"):
                (first, rate), (last, speed) = rates[0], rates[-1]
                about = cost, summary["tokens"], share, own.get("stop_early"), wall
                counted = (last - LOG_EVERY) / summary["steps"] * summary["tokens"]
                member = _Member(*about, last, speed, counted)
                populations.setdefault((like, first, rate), []).append(member)
    return [_record(like, members) for (like, *_), members in populations.items()]


class _Member(NamedTuple):
    """What one member of a population tells of it."""

    cost: float  # FLOPs per token
    tokens: int
    share: float
    stop_early: bool | None
    wall: float  # seconds from the beginning to the end of its artifact
    last: int  # step of its last record
    speed: float  # tokens per second of all members until then
    counted: float  # its tokens until then, from the first record on


def _record(like: str, members: Sequence[_Member]) -> Record:
    """The record of a population."""
    longest, count = max(members, key=lambda member: member.last), len(members)
    seconds = sum(member.counted for member in members) / longest.speed
    start = max(0.0, min(member.wall for member in members) - seconds)
    share = sum(member.share for member in members) / count
    facts = longest.cost, longest.tokens, share, longest.stop_early, start
    return Record(like, count, longest.speed * longest.cost, *facts)


def _seconds(folder: epath.Path) -> float:
    """From the beginning of a training, or from where it was resumed, to its end."""
    begun, ended = ((folder / f"{name}.json").stat().mtime for name in ("config", "summary"))
    return float(ended - begun)


def _rates(path: epath.Path) -> list[list[tuple[int, float]]]:
    """For each member that an artifact was chosen from: steps, and tokens per second until then."""
    members: dict[Any, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record.get("tokens_per_second", 0) > 0:
            found = record["step"], record["tokens_per_second"]
            members.setdefault(record.get("learning_rate"), []).append(found)
    return list(members.values())


def _by_records(
    run: RunContext, model: ModelNode, doing: TrainSpec, records: Sequence[Record]
) -> Pace:
    """By the record that is most like it; nan without one. The same on every process."""
    like = likeness(json.loads(json.dumps(model.artifact.describe())))
    some, cost = [r for r in records if r.like == like], bench.flops(doing).total
    stops = getattr(model.recipe, "stop_early", None)
    shares = [r.share for r in some if stops and r.stop_early == stops]
    found, start = math.nan, 0.0
    if some:
        best = min(some, key=lambda r: (abs(math.log(r.cost / cost)), -r.tokens * r.members))
        turns = -(-best.members // run.mesh.shape["sweep"])
        found, start = doing.tokens * cost * best.members / turns / best.rate, best.start
    share = sum(shares) / len(shares) if shares else 1.0
    step, start, share = agreed([found, start, share]).tolist()
    return Pace(step, 0.0, start, "records", share)


def _fastest(run: RunContext) -> float:
    """FLOPs per second of one group of the `sweep` axis: of a matrix product, on each device."""
    square = jnp.ones((SIDE, SIDE), jnp.bfloat16 if _accelerated(run) else jnp.float32)
    product = jax.jit(lambda x: x @ x).lower(square).compile()
    jax.block_until_ready(product(square))
    started = time.perf_counter()
    jax.block_until_ready(product(square))
    seconds = float(agreed([time.perf_counter() - started])[0])
    alone = 1 if _accelerated(run) else run.mesh.size  # the cores of a CPU share the product
    return 2 * SIDE**3 / seconds / alone * run.mesh.size / run.mesh.shape["sweep"]


def _accelerated(run: RunContext) -> bool:
    return run.mesh.devices.flat[0].platform != "cpu"


@contextmanager
def _uncached() -> Iterator[None]:
    """Compile anew: a program in the cache tells nothing of how long it takes."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()

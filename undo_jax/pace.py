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

from undo_jax import bench
from undo_jax.durable import read_json
from undo_jax.graph import Model, Work, work
from undo_jax.schedule import agreed
from undo_jax.trainer import Run
from undo_jax.types import LM

LONG = 20.0  # seconds that a measurement may take; what would take longer is computed from FLOPs
QUICK = 1.0  # what takes less is measured over more steps
SIDE = 1024  # of the square matrices whose product tells how fast the devices can be at best


@dataclass(frozen=True)
class Pace:
    """Seconds of one model in each group of the `sweep` axis, all of them side by side."""

    step: float
    evaluation: float  # 0 where it is part of `step`
    start: float  # compilation, once per program
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


def paces(run: Run, programs: Mapping[str, Model], records: Sequence[Record]) -> dict[str, Pace]:
    """The pace of each program, of which one model is given, by the keys of `programs`.

    In this order: by records of trainings that are alike, by measuring it, by its FLOPs.
    """
    scored: dict[LM, bench.Speed] = {}  # evaluations, each measured once
    return {key: _pace(run, model, records, scored) for key, model in programs.items()}


def _pace(run: Run, model: Model, records: Sequence[Record], scored: dict[LM, bench.Speed]) -> Pace:
    doing = work(model.recipe, run.setting)  # type: ignore[arg-type]
    known, share = _by_records(run, model, doing, records)
    if not math.isnan(known):
        return Pace(known, 0.0, 0.0, "records", share)
    fastest, step_flops = _fastest(run), bench.flops(doing).total * doing.tokens
    tokens = sum(x.size for x in jax.tree.leaves(run.material) if x.dtype.kind == "i")
    step = step_flops / fastest
    evaluation = tokens * doing.lm.forward_flops(doing.row_length) / fastest
    steps = 20 if 40 * step < QUICK else 3
    if (bench.WARM + 2 * steps) * step + 2 * evaluation > LONG:
        return Pace(step, evaluation, 0.0, "FLOPs")
    with _uncached():
        trained = bench.measure(doing, run.mesh, steps)
        if doing.lm not in scored:
            how = run.setting.evaluate, run.material, run.mesh
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
    ends: dict[Any, list[tuple[int, float]]] = {}  # (step, tokens per second) of each member
    shares: dict[Any, list[float]] = {}
    about: dict[Any, tuple[float, int, bool | None]] = {}
    for path in workdir.glob("*/summary.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            described, summary = read_json(path.parent / "config.json"), read_json(path)
            like, own = likeness(described), described["config"][described["stage"]]
            each, steps = summary["tokens"], _training(own)["steps"]
            facts = summary["flops"] / each, each, own.get("stop_early")
            for rates in _rates(path.parent / "metrics.jsonl"):
                known = like, *rates[0]
                ends.setdefault(known, []).append(rates[-1])
                shares.setdefault(known, []).append(summary["steps"] / steps)
                about[known] = facts
    found = []
    for known, of in ends.items():
        (_, rate), (cost, each, stop_early) = max(of), about[known]
        share = sum(shares[known]) / len(of)
        found.append(Record(known[0], len(of), rate * cost, cost, each, share, stop_early))
    return found


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
    run: Run, model: Model, doing: Work, records: Sequence[Record]
) -> tuple[float, float]:
    """Seconds per step, by the record that is most like it, and the share of the steps to expect.

    nan without a record. The same on every process.
    """
    like = likeness(json.loads(json.dumps(model.artifact.describe())))
    some, cost, found = [r for r in records if r.like == like], bench.flops(doing).total, math.nan
    stops = getattr(model.recipe, "stop_early", None)
    shares = [r.share for r in some if stops and r.stop_early == stops]
    if some:
        best = min(some, key=lambda r: (abs(math.log(r.cost / cost)), -r.tokens * r.members))
        turns = -(-best.members // run.mesh.shape["sweep"])
        found = doing.tokens * cost * best.members / turns / best.rate
    share = sum(shares) / len(shares) if shares else 1.0
    step, share = agreed([found, share]).tolist()
    return step, share


def _fastest(run: Run) -> float:
    """FLOPs per second of one group of the `sweep` axis: of a matrix product, on each device."""
    square = jnp.ones((SIDE, SIDE), jnp.bfloat16 if _accelerated(run) else jnp.float32)
    product = jax.jit(lambda x: x @ x).lower(square).compile()
    jax.block_until_ready(product(square))
    started = time.perf_counter()
    jax.block_until_ready(product(square))
    seconds = float(agreed([time.perf_counter() - started])[0])
    alone = 1 if _accelerated(run) else run.mesh.size  # the cores of a CPU share the product
    return 2 * SIDE**3 / seconds / alone * run.mesh.size / run.mesh.shape["sweep"]


def _accelerated(run: Run) -> bool:
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

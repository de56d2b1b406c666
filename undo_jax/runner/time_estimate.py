"""Estimates how long trainings take, from the records of finished trainings that are alike."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from undo_jax.fit import bench
from undo_jax.graph.model_graph import ModelNode, train_spec
from undo_jax.runner.run_context import RunContext
from undo_jax.runtime.atomic_files import read_json
from undo_jax.runtime.processes import agree_on
from undo_jax.training.meter import LOG_EVERY


@dataclass(frozen=True)
class Pace:
    """How fast one model in each group of the `sweep` axis trains, all of them side by side."""

    step: float  # seconds of a step, with a share of the evaluations and saves
    start: (
        float  # seconds of compilation, and of what else precedes the first steps, once per group
    )
    fraction: float = 1.0  # of its steps that a training takes, if a stop rule may end it earlier


class PaceRecord(NamedTuple):
    """How fast finished models that trained together were."""

    like: str  # see `likeness`
    trials: int
    rate: float  # FLOPs per second of all of them, evaluations and saves included
    cost: float  # FLOPs per token
    tokens: int  # of one model
    fraction: float  # of their steps that they took
    stop_early: bool | None  # whether a stop rule could end them; None if the kind has none
    start: float  # seconds until the 10th step or so, most of them compilation


def estimate_paces(
    run: RunContext, models: Mapping[str, ModelNode], records: Sequence[PaceRecord]
) -> dict[str, Pace | None]:
    """Estimates the pace of each group of models that train together.

    Args:
        run: the run that would train them.
        models: one model of each group, by the group's key.
        records: how fast finished models were.

    Returns:
        The pace by the group's key, None if no record is alike; the same on every process.
    """
    return {key: _estimate_pace(run, model, records) for key, model in models.items()}


def _estimate_pace(run: RunContext, model: ModelNode, records: Sequence[PaceRecord]) -> Pace | None:
    """Estimates the pace from the record with the closest FLOPs per token, then the longest."""
    like = likeness(json.loads(json.dumps(model.artifact.describe())))
    spec = train_spec(model.recipe, run.setting)  # type: ignore[arg-type]
    cost = bench.flops(spec).total
    alike = [record for record in records if record.like == like]
    step, start, fraction = math.nan, 0.0, 1.0
    if alike:
        best = min(alike, key=lambda r: (abs(math.log(r.cost / cost)), -r.tokens * r.trials))
        turns = -(-best.trials // run.mesh.shape["sweep"])
        step = spec.tokens * cost * best.trials / turns / best.rate
        start = best.start
    if stop_early := getattr(model.recipe, "stop_early", None):
        fractions = [r.fraction for r in alike if r.stop_early == stop_early]
        fraction = sum(fractions) / len(fractions) if fractions else 1.0
    step, start, fraction = agree_on([step, start, fraction]).tolist()
    return None if math.isnan(step) else Pace(step, start, fraction)


def likeness(description: Mapping[str, Any]) -> str:
    """Returns a text that is equal for artifacts whose trainings take about equally long per FLOP.

    They have the same kind, model, setting and batch, and are evaluated equally often.

    Args:
        description: the content of config.json.

    Raises:
        KeyError: for an artifact that was not trained.
    """
    kind, config = description["stage"], description["config"]
    training = _training(config[kind])
    sizes = {name: training[name] for name in ("batch_size", "eval_every", "accumulation")}
    return json.dumps([kind, config["model"], config["setting"], sizes], sort_keys=True)


def _training(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the training of a recipe, or of its attack."""
    return recipe["training"] if "training" in recipe else recipe["attack"]["training"]


class _TrialRecord(NamedTuple):
    """What the records of one trial tell of the models that trained together."""

    cost: float  # FLOPs per token
    tokens: int
    fraction: float
    stop_early: bool | None
    wall_seconds: float  # from the beginning to the end of its artifact
    last_step: int  # of its last record
    rate: float  # tokens per second of all trials until then
    tokens_counted: float  # its tokens until then, from the first record on


def read_records(workdir: epath.Path) -> list[PaceRecord]:
    """Reads the records of all finished models in a workdir; those that trained together are one.

    Trials that trained together have the same number for tokens per second at the same step.
    """
    groups: dict[Any, list[_TrialRecord]] = {}
    for path in workdir.glob("*/summary.json"):
        # damaged artifacts, and those that were not trained, are left out
        with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            description, summary = read_json(path.parent / "config.json"), read_json(path)
            recipe = description["config"][description["stage"]]
            steps, tokens = summary["steps"], summary["tokens"]
            for rates in _read_rates(path.parent / "metrics.jsonl"):
                (first_step, first_rate), (last_step, last_rate) = rates[0], rates[-1]
                trial = _TrialRecord(
                    cost=summary["flops"] / tokens,
                    tokens=tokens,
                    fraction=steps / _training(recipe)["steps"],
                    stop_early=recipe.get("stop_early"),
                    wall_seconds=_wall_seconds(path.parent),
                    last_step=last_step,
                    rate=last_rate,
                    tokens_counted=(last_step - LOG_EVERY) / steps * tokens,
                )
                key = likeness(description), first_step, first_rate
                groups.setdefault(key, []).append(trial)
    return [_merge(like, trials) for (like, *_), trials in groups.items()]


def _merge(like: str, trials: Sequence[_TrialRecord]) -> PaceRecord:
    """Merges the records of trials that trained together."""
    longest = max(trials, key=lambda trial: trial.last_step)
    seconds = sum(trial.tokens_counted for trial in trials) / longest.rate
    return PaceRecord(
        like=like,
        trials=len(trials),
        rate=longest.rate * longest.cost,
        cost=longest.cost,
        tokens=longest.tokens,
        fraction=sum(trial.fraction for trial in trials) / len(trials),
        stop_early=longest.stop_early,
        start=max(0.0, min(trial.wall_seconds for trial in trials) - seconds),
    )


def _wall_seconds(folder: epath.Path) -> float:
    """Returns the seconds from the beginning of a training, or its resumption, to its end."""
    start, end = ((folder / f"{name}.json").stat().mtime for name in ("config", "summary"))
    return float(end - start)


def _read_rates(path: epath.Path) -> list[list[tuple[int, float]]]:
    """Returns steps and tokens per second until then, for each trial an artifact is chosen from."""
    trials: dict[Any, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record.get("tokens_per_second", 0) > 0:
            rate = record["step"], record["tokens_per_second"]
            trials.setdefault(record.get("learning_rate"), []).append(rate)
    return list(trials.values())

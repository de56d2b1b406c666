"""Reads an artifact: its config.json, its summary.json and its metrics.jsonl."""

import math
import reprlib
from collections.abc import Iterable, Sequence

from etils import epath

from undo_jax.report.files import NONE, as_written, get_dict, number, read_lines, typed, verify
from undo_jax.report.plugin_scores import read_plugin_scores
from undo_jax.report.records import ATTACK, DISTILLATION, Evaluation, Json, Logged, Measure
from undo_jax.runtime.atomic_files import read_json

LAST = 2**63  # steps are below


def read_artifact(
    folder: epath.Path,
    model: str,
    metrics: Sequence[Measure],
    scored: bool = False,
    attack: bool = False,
) -> Logged | None:
    """Reads one artifact; None while it is unfinished.

    Args:
        folder: Its folder.
        model: The label of the model that it belongs to.
        metrics: The metrics of the experiment; the first two are its headline.
        scored: Whether it must have scores by the headline.
        attack: Whether it must be an attack.

    Raises:
        ValueError: A file is damaged.
    """
    remedy = f"delete {folder}, and run the experiment again"
    if not (folder / "summary.json").exists():
        return None
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder / 'config.json'} is missing, though the model exists: {remedy}")
    config = read_json(folder / "config.json", remedy)
    summary = read_json(folder / "summary.json", remedy)
    verify(folder, summary)
    plugin_scores = read_plugin_scores(folder, config)
    with as_written(folder):
        stage = typed(config, "stage", str)
        if attack and stage != ATTACK:
            raise ValueError(f"stage is {reprlib.repr(stage)}, but it is an attack")
        typed(config, "model", str)
        scores = typed(summary, "eval", dict)
        if scored or stage == ATTACK or scores:
            expected = [m.name for m in metrics[:2]]
            more = [m.name for m in metrics[2:] if m.name in scores]
            scores = {name: number(scores[name]) for name in expected + more}
        costs: Json = {name: number(summary.get(name)) for name in ("steps", "tokens", "flops")}
        recovered = typed(summary, "recovered", bool, NONE)
        parts = get_dict(config, "config")
        settings, upstream = get_dict(parts, stage), config.get("upstream")
        upstream = upstream if isinstance(upstream, list) else []
        attacks, losses, unreadable = (), {}, 0
        if stage in (ATTACK, DISTILLATION):
            records, unreadable = read_lines(folder / "metrics.jsonl")
            if stage == DISTILLATION:
                losses = _losses(records)
            else:
                has_log = bool(records) or unreadable > 0 or number(summary.get("steps")) > 0
                attacks = _attacks(
                    folder, metrics, get_dict(settings, "attack"), summary, records, has_log
                )
        return Logged(
            folder=folder.name,
            stage=stage,
            model=model,
            seed=typed(config, "seed", int, NONE),
            summary=costs | {"recovered": recovered, "eval": scores},
            attacks=attacks,
            unreadable=unreadable,
            settings=settings,
            losses=losses,
            upstream=tuple(text for text in upstream if isinstance(text, str)),
            other_config={name: part for name, part in parts.items() if name != stage},
            plugin_scores=plugin_scores,
        )


def _losses(records: Iterable[Json]) -> dict[int, float]:
    """Returns the training losses by step."""
    losses = {typed(r, "step", int): number(r["loss"]) for r in records if "loss" in r}
    if wrong := [step for step in losses if not 0 <= step < LAST]:
        raise ValueError(f"a loss at step {reprlib.repr(wrong[0])}")
    return dict(sorted(losses.items()))


def _attacks(
    folder: epath.Path,
    metrics: Sequence[Measure],
    attack: Json,
    summary: Json,
    records: Sequence[Json],
    has_log: bool,
) -> tuple[Evaluation, ...]:
    """Returns the evaluations of an attack; if it does not train, its scores as of step 0."""
    retain, forget = metrics[0].name, metrics[1].name
    metric = typed(attack, "metric", str, NONE, default=None) or forget
    evaluations = read_attacks(records, metric, retain)
    if has_log:
        return evaluations
    candidates = summary.get("attack"), attack.get("name"), folder.name
    name = next(text for text in candidates if isinstance(text, str))
    scores = summary["eval"]
    return (Evaluation(name, None, 0, number(scores[metric]), number(scores[retain]), metric),)


def read_attacks(records: Iterable[Json], metric: str, retain: str) -> tuple[Evaluation, ...]:
    """Returns the evaluations of records; of a step logged twice (by a resumed run) the later."""
    evaluations: dict[tuple[str, float, int], Evaluation] = {}
    for r in records:
        if "eval" in r:
            data, step = typed(r, "attack", str), typed(r, "step", int)
            rate = typed(r, "learning_rate", float, int)
            if not (0 < rate < math.inf and 0 <= step < LAST):
                raise ValueError(f"a record of learning rate {rate} at step {step}")
            score, retained = number(r["eval"][metric]), number(r["eval"][retain])
            evaluations[data, float(rate), step] = Evaluation(
                data, float(rate), step, score, retained, metric
            )
    return tuple(evaluations[key] for key in sorted(evaluations))

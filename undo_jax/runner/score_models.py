"""Computes score plug-ins of finished models, and stores them in the models' artifacts."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from undo_jax.checks import listed
from undo_jax.evals.scoring import Score, compute_score, score_name
from undo_jax.graph.model_graph import ModelNode
from undo_jax.logs.log import console, read_last_number, show_waiting
from undo_jax.runner.run_context import RunContext
from undo_jax.runtime.processes import agree_on, barrier
from undo_jax.store.artifacts import to_json
from undo_jax.store.score_files import read_scores, write_scores
from undo_jax.training.loop import has_diverged


class ScoreCounts(NamedTuple):
    """How many models were scored, had the scores already, or have no parameters any more."""

    scored: int
    complete: int
    without_params: int


def score_models(run: RunContext, models: Sequence[ModelNode], again: bool = False) -> ScoreCounts:
    """Computes the scores of `run.scores` that finished models lack, and stores them.

    Models that are not scored by the setting either, e.g. noised ones, are left out. Those whose
    parameters were removed are named in one line. Each model's file is written once all of its
    scores are computed, so that an interrupted call goes on with the next model.

    Args:
        run: the setting, the mesh and the scores.
        models: finished models.
        again: whether to compute scores that are stored, too.

    Returns:
        The numbers of models.

    Raises:
        ValueError: if a score raises anything, or gives no numbers.
    """
    if not run.scores:
        return ScoreCounts(0, 0, 0)
    models = [model for model in models if _is_scored(model)]
    configs = {score_name(score): _describe(score) for score in run.scores}
    stored = [_stored(model) for model in models]
    is_missing = agree_on(
        [
            [again or entries.get(name, {}).get("config") != config
             for name, config in configs.items()]
            for entries in stored
        ]
    )  # fmt: skip
    has_params = agree_on([(model.artifact.folder / "params").exists() for model in models])
    removed, scored = [], 0
    for model, entries, flags, has in zip(models, stored, is_missing, has_params, strict=True):
        missing = [score for score, flag in zip(run.scores, flags, strict=True) if flag]
        if missing and has:
            _score(run, model, missing, configs, entries)
            scored += 1
        elif missing:
            removed.append(model.artifact.folder.name)
    if removed:
        names = listed(removed)
        console.print(f"not scored, their parameters were removed: {names}", soft_wrap=True)
    return ScoreCounts(scored, len(models) - scored - len(removed), len(removed))


def _is_scored(model: ModelNode) -> bool:
    """Whether the setting scores such models, too."""
    return model.recipe.is_language_model and model.recipe.is_scored


def _score(
    run: RunContext,
    model: ModelNode,
    scores: Sequence[Score],
    configs: Mapping[str, Any],
    entries: Mapping[str, Any],
) -> None:
    """Computes scores of one model and adds them to the entries of its scores.json."""
    name = model.artifact.folder.name
    with show_waiting(f"scores of {name}"):
        params, computed = run.load(model)(), {}
        for score in scores:
            values = compute_score(score, model.recipe.lm, params, run.setting)
            computed[score_name(score)] = {"config": configs[score_name(score)], "values": values}
    if jax.process_index() == 0:
        write_scores(model.artifact, {**entries, **computed})
    barrier(f"scores of {name}")


def _stored(model: ModelNode) -> dict[str, Any]:
    """Returns the entries of a model's scores.json; none if it is damaged, after a line."""
    try:
        return read_scores(model.artifact)
    except ValueError as error:
        console.print(str(error), soft_wrap=True)
        return {}


def _describe(score: Score) -> Any:
    """Returns the function and its options as JSON: with others, a score is computed again."""
    return json.loads(json.dumps(to_json(score)))


def report_failures(run: RunContext, models: Sequence[ModelNode]) -> None:
    """Prints which models have diverged, or learned nothing.

    Raises ValueError for those that have diverged and that others are made from.
    """
    names = [name for name, metric in run.setting.metrics.items() if metric.at == "evaluation"]
    diverged, lines = [], []
    for model in models:
        summary = model.artifact.summary()
        scores = summary.get("eval", {})
        if has_diverged({name: scores[name] for name in names if name in scores}):
            diverged.append(model)
            continue
        tags = {name: summary.get(name) for name in model.recipe.record_tags(None)}
        loss = read_last_number(model.artifact.folder, "loss", tags=tags)
        if loss is not None and not (math.isfinite(loss) or model.recipe.must_converge):
            lines.append(
                f"{describe_model(model)}, diverged: its loss is {loss}, which trains nothing; "
                "change its loss or lower its learning rate"
            )
    if fatal := [describe_model(model) for model in diverged if model.recipe.must_converge]:
        raise ValueError(
            f"{' and '.join(fatal)}, diverged: its scores are not finite, and those of what is "
            "made of it would not be: lower its learning rate, or give another base"
        )
    lines += [
        f"{describe_model(model)}, diverged: its scores are not finite; lower its learning rate"
        for model in diverged
    ]
    vocab_size = run.setting.get_tokenizer().vocab_size
    uniform_loss = math.log(vocab_size)
    for model in (model for model in models if model.recipe.must_converge):
        loss = read_last_number(model.artifact.folder, "loss", after=1)
        if loss is not None and not loss < uniform_loss:
            lines.append(
                f"{describe_model(model)}, has learned nothing: its loss ends at {loss:.3g}, a "
                f"guess among {vocab_size} tokens has {uniform_loss:.3g}; change its learning "
                "rate, or train it longer"
            )
    for line in lines:
        console.print(line, soft_wrap=True)


def describe_model(model: ModelNode) -> str:
    seed = "" if model.artifact.seed is None else f", seed {model.artifact.seed}"
    return f"{model.recipe.kind} of {model.artifact.model}{seed}"

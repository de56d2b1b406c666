"""Makes the models of a graph: together those that can train together, and none twice."""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from undo_jax.evals.scoring import make_scorer
from undo_jax.graph.model_graph import ModelNode, RowFormat, group_key
from undo_jax.graph.recipe import ComputedRecipe, TrainedRecipe
from undo_jax.logs.log import show_waiting
from undo_jax.runner.run_context import RunContext
from undo_jax.runner.score_models import describe_model, report_failures, score_models
from undo_jax.runner.split_group import split_group
from undo_jax.runner.train_group import train_group
from undo_jax.runtime.processes import agree_on
from undo_jax.store import artifacts, progress_folders, snapshots


def make_models(
    run: RunContext,
    models: Sequence[ModelNode],
    selected: Collection[ModelNode],
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Makes the selected models that are not finished, each after its parents.

    Args:
        run: where the models are made.
        models: all models of the experiment, in topological order.
        selected: the models to make.
        on_start: called before each training, and after each model that is not trained.

    Raises:
        FileNotFoundError: if a model is needed that is neither selected nor finished.
        ValueError: if a model has diverged that others are made from.
    """
    to_make, finished = find_work(models, selected)
    report_failures(run, [model for model in finished if model.recipe.must_converge])
    score_models(run, [model for model in finished if model not in to_make])
    for group in order_groups(run, models, to_make):
        if isinstance(group[0].recipe, TrainedRecipe):
            on_start()
            train_group(run, group, [m for m in group if m not in to_make or m in finished])
        else:
            with show_waiting(describe_model(group[0])):
                _compute(run, group[0])
            on_start()
        to_make = without(to_make, group)
        report_failures(run, group)
        score_models(run, group)
    progress_folders.remove_finished_progress(models[0].artifact.workdir)


def _compute(run: RunContext, model: ModelNode) -> None:
    """Makes a model that is not trained."""
    assert isinstance(recipe := model.recipe, ComputedRecipe)
    key = None if recipe.is_deterministic else model.key
    parents = [run.load(parent)() for parent in model.parents]
    params = recipe.compute(run.mesh, key, parents, run.read_samples(model))
    scorer = make_scorer(run.setting, run.eval_data, run.mesh) if recipe.is_scored else None
    scores, lists = scorer(recipe.lm, params) if scorer else ({}, {})
    artifacts.prepare_folder(model.artifact)
    artifacts.save_artifact(model.artifact, params, scores, lists, **recipe.record_tags(None))


def find_work(
    models: Sequence[ModelNode], selected: Collection[ModelNode]
) -> tuple[list[ModelNode], list[ModelNode]]:
    """Returns which of the selected models are to be made, and which are finished.

    Those that lack snapshots are in both. A finished model whose parameters were removed is made
    again if another needs them.
    """

    def where(holds: Callable[[ModelNode], bool]) -> list[ModelNode]:
        flags = agree_on([holds(model) for model in models])
        return [model for model, flag in zip(models, flags, strict=True) if flag]

    finished = where(lambda m: m in selected and artifacts.is_finished(m.artifact))
    complete = where(lambda m: m in finished and _has_snapshots(m))
    to_make = {m for m in models if m in selected and m not in complete}
    removed = where(lambda m: m in finished and not (m.artifact.folder / "params").exists())
    needed: set[ModelNode] = set()
    while more := {p for m in to_make | needed for p in m.parents if p in removed} - needed:
        needed |= more
    return [m for m in models if m in to_make | needed], without(finished, needed)


def order_groups(
    run: RunContext, models: Sequence[ModelNode], to_make: Sequence[ModelNode]
) -> Iterator[list[ModelNode]]:
    """Yields the models to make in groups, each after its parents.

    A group of an interrupted training also has the finished models that trained in it. Each group
    must be made before the next one is asked for.

    Raises:
        FileNotFoundError: if a parent is neither finished nor to be made.
    """
    for parent in dict.fromkeys(parent for model in to_make for parent in model.parents):
        if parent not in to_make:
            parent.artifact.summary()
    interrupted = _interrupted_groups(models, to_make)
    while to_make:
        ready = (g for g in interrupted if not any(set(m.parents) & set(to_make) for m in g))
        if (group := next(ready, None)) is not None:
            interrupted.remove(group)
            groups = [group]
        else:
            free = [m for m in to_make if not any(m in group for group in interrupted)]
            candidates = _next_models(free, to_make, run.setting)
            is_trained = isinstance(candidates[0].recipe, TrainedRecipe)
            groups = split_group(run, candidates) if is_trained else [candidates]
        for group in groups:
            yield group
            to_make = without(to_make, group)


def _has_snapshots(model: ModelNode) -> bool:
    """Returns whether all snapshots exist, up to the step at which the training ended."""
    end, steps = model.artifact.summary().get("steps", 0), model.recipe.snapshot_steps
    return all(snapshots.read_summary(model.artifact, step) for step in steps if step <= end)


def _next_models(
    models: Sequence[ModelNode], to_make: Sequence[ModelNode], row_format: RowFormat
) -> list[ModelNode]:
    """Returns the models to make now: some that can train together and have all their parents.

    Complete groups come before those in which some models still wait for parents.
    """
    groups: dict[str, list[ModelNode]] = {}
    for model in models:
        recipe, name = model.recipe, model.artifact.fingerprint
        key = group_key(recipe, row_format) if isinstance(recipe, TrainedRecipe) else name
        groups.setdefault(key, []).append(model)
    ready = [
        [model for model in group if not set(model.parents) & set(to_make)]
        for group in groups.values()
    ]
    pairs = [pair for pair in zip(groups.values(), ready, strict=True) if pair[1]]
    return min(pairs, key=lambda pair: len(pair[0]) - len(pair[1]))[1]


def _interrupted_groups(
    models: Sequence[ModelNode], to_make: Sequence[ModelNode]
) -> list[list[ModelNode]]:
    """Returns groups of `models` whose training was interrupted, if some are to be made."""
    index_of = {model.artifact.folder.name: index for index, model in enumerate(models)}
    missing = {model.artifact.folder.name for model in to_make}
    order = np.full((2, len(models)), -1)  # of each model: its group, its place in it
    workdir = models[0].artifact.workdir
    for number, folders in enumerate(progress_folders.list_interrupted(workdir)):
        if set(folders) <= index_of.keys() and set(folders) & missing:
            for place, folder in enumerate(folders):
                order[:, index_of[folder]] = number, place
    groups: dict[int, list[tuple[int, ModelNode]]] = {}
    for model, (number, place) in zip(models, agree_on(order).T.tolist(), strict=True):
        if number >= 0:
            groups.setdefault(number, []).append((place, model))
    return [[m for _, m in sorted(g, key=lambda pair: pair[0])] for g in groups.values()]


def without(models: Collection[ModelNode], excluded: Collection[ModelNode]) -> list[ModelNode]:
    return [model for model in models if model not in excluded]

"""Decides which models are made next, and which train together. Runs and dry runs follow it."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.graph.train_specs import RowFormat, group_key
from undo_jax.runner.split_group import split_group
from undo_jax.runner.trials import RunContext
from undo_jax.runtime.processes import agree_on
from undo_jax.store import artifacts, progress_folders, snapshots


class PendingWork(NamedTuple):
    """What is to be made of the selected models, and what is finished."""

    to_make: list[ModelNode]  # also finished models that are trained again for missing snapshots
    finished: list[ModelNode]


def find_work(models: Sequence[ModelNode], selected: Collection[ModelNode]) -> PendingWork:
    """Returns which of the selected models are to be made, and which are finished."""
    is_finished = agree_on([m in selected and artifacts.is_finished(m.artifact) for m in models])
    finished = [m for m, done in zip(models, is_finished, strict=True) if done]
    has_all_snapshots = agree_on([m in finished and _has_snapshots(m) for m in models])
    pairs = zip(models, has_all_snapshots, strict=True)
    to_make = [m for m, done in pairs if m in selected and not done]
    without_params = _needs_params_again(models, to_make, finished)
    return PendingWork(
        [m for m in models if m in to_make or m in without_params],
        without(finished, without_params),
    )


def _needs_params_again(
    models: Sequence[ModelNode], to_make: Sequence[ModelNode], finished: Sequence[ModelNode]
) -> list[ModelNode]:
    """Returns finished models whose parameters were removed, and are needed for those to make."""
    is_missing = agree_on(
        [m in finished and not (m.artifact.folder / "params").exists() for m in models]
    )
    removed = [m for m, missing in zip(models, is_missing, strict=True) if missing]
    needed: set[ModelNode] = set()
    while more := {p for m in (*to_make, *needed) for p in m.parents if p in removed} - needed:
        needed |= more
    return [m for m in models if m in needed]


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
            yield group
            to_make = without(to_make, group)
            continue
        blocked = [model for group in interrupted for model in group]
        candidates = _next_models(without(to_make, blocked), to_make, run.setting)
        is_trained = isinstance(candidates[0].recipe, TrainedRecipe)
        for group in split_group(run, candidates) if is_trained else [candidates]:
            yield group
            to_make = without(to_make, group)


def _has_snapshots(model: ModelNode) -> bool:
    """Returns whether all snapshots exist, up to the step at which the training ended."""
    end = model.artifact.summary().get("steps", 0)
    steps = [step for step in model.recipe.snapshot_steps if step <= end]
    return all(snapshots.read_summary(model.artifact, step) for step in steps)


def _next_models(
    models: Sequence[ModelNode], to_make: Sequence[ModelNode], row_format: RowFormat
) -> list[ModelNode]:
    """Returns the models to make now: some that can train together and have all their parents.

    Complete groups come before those in which some models still wait for parents.
    """
    groups: dict[str, list[ModelNode]] = {}
    for model in models:
        name = model.artifact.fingerprint
        if isinstance(model.recipe, TrainedRecipe):
            name = group_key(model.recipe, row_format)
        groups.setdefault(name, []).append(model)
    ready = {
        name: [model for model in group if not set(model.parents) & set(to_make)]
        for name, group in groups.items()
    }
    names = [name for name in groups if ready[name]]
    return ready[min(names, key=lambda name: len(groups[name]) - len(ready[name]))]


def _interrupted_groups(
    models: Sequence[ModelNode], to_make: Sequence[ModelNode]
) -> list[list[ModelNode]]:
    """Returns groups whose training was interrupted and of which some models are to be made.

    Only those whose models are all among `models`; others are resumed by their own experiment.
    """
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


def without(models: Sequence[ModelNode], excluded: Sequence[ModelNode]) -> list[ModelNode]:
    return [model for model in models if model not in excluded]

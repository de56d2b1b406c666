"""Which models of a run are not finished, and which of them an interrupted run trained together."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from undo_jax.graph.model_graph import ModelNode
from undo_jax.runtime.processes import agree_on
from undo_jax.store import artifacts, progress_folders, snapshots


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


def _has_snapshots(model: ModelNode) -> bool:
    """Returns whether all snapshots exist, up to the step at which the training ended."""
    end, steps = model.artifact.summary().get("steps", 0), model.recipe.snapshot_steps
    return all(snapshots.read_summary(model.artifact, step) for step in steps if step <= end)


def interrupted_groups(
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

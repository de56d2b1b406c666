"""Which models are made next, and which train together. A run and its plan follow one order."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from undo_jax.graph.nodes import Model, RowForm, group_key, is_trained
from undo_jax.runner.train_group import Run, companies
from undo_jax.runtime.processes import agree_on
from undo_jax.store import artifacts, progress_folders, snapshots


class Todo(NamedTuple):
    """What is to be made of the wanted models, and what is there."""

    left: list[Model]  # to be made, or to be trained again for the steps that are to be kept
    finished: list[Model]


def todo(models: Sequence[Model], wanted: Collection[Model]) -> Todo:
    """Those of the models that are wanted: to be made, and finished."""
    kept = agree_on([m in wanted and artifacts.is_finished(m.artifact) for m in models])
    finished = [m for m, done in zip(models, kept, strict=True) if done]
    whole = agree_on([m in finished and _has_steps(m) for m in models])
    left = [m for m, done in zip(models, whole, strict=True) if m in wanted and not done]
    lost = _lost(models, left, finished)
    return Todo([m for m in models if m in left or m in lost], without(finished, lost))


def _lost(models: Sequence[Model], left: Sequence[Model], finished: Sequence[Model]) -> list[Model]:
    """Finished models without parameters, which were removed, that a model to be made needs."""
    gone = agree_on([m in finished and not (m.artifact.folder / "params").exists() for m in models])
    without_parameters = [m for m, no in zip(models, gone, strict=True) if no]
    lost: set[Model] = set()
    while more := {p for m in (*left, *lost) for p in m.parents if p in without_parameters} - lost:
        lost |= more
    return [m for m in models if m in lost]


def companies_in_order(
    run: Run, models: Sequence[Model], left: Sequence[Model]
) -> Iterator[list[Model]]:
    """The models `left`, and those that trained with them before an interruption, as companies.

    Each comes after its parents, and is to be made before the next one is asked for. Raises
    FileNotFoundError if a parent is neither finished nor left.
    """
    for parent in dict.fromkeys(parent for model in left for parent in model.parents):
        if parent not in left:
            parent.artifact.summary()
    interrupted = _interrupted(models, left)
    while left:
        ready = (one for one in interrupted if not any(set(m.parents) & set(left) for m in one))
        if (company := next(ready, None)) is not None:
            interrupted.remove(company)
            yield company
            left = without(left, company)
            continue
        waiting = [model for company in interrupted for model in company]
        group = _next(without(left, waiting), left, run.setting)
        for company in companies(run, group) if is_trained(group[0].recipe) else [group]:
            yield company
            left = without(left, company)


def _has_steps(model: Model) -> bool:
    """Whether the parameters of all steps to keep exist, up to where a finished training ended."""
    end = model.artifact.summary().get("steps", 0)
    wanted = [step for step in getattr(model.recipe, "keeps", ()) if step <= end]
    return all(snapshots.read_summary(model.artifact, step) for step in wanted)


def _next(some: Sequence[Model], left: Sequence[Model], form: RowForm) -> list[Model]:
    """The models to make now, of `some` of those `left`: a group that can train together.

    Complete groups come before those in which some models still wait for parents.
    """
    groups: dict[str, list[Model]] = {}
    for model in some:
        trained = is_trained(model.recipe)
        name = group_key(model.recipe, form) if trained else model.artifact.fingerprint  # type: ignore
        groups.setdefault(name, []).append(model)
    ready = {
        name: [model for model in group if not set(model.parents) & set(left)]
        for name, group in groups.items()
    }
    names = [name for name in groups if ready[name]]
    first = min(names, key=lambda name: len(groups[name]) - len(ready[name]))
    return ready[first]


def _interrupted(models: Sequence[Model], left: Sequence[Model]) -> list[list[Model]]:
    """Companies whose training was interrupted and of which some models are still to be made.

    Only those whose models are all among `models`; others are resumed by their own experiment.
    """
    here = {model.artifact.folder.name: index for index, model in enumerate(models)}
    todo = {model.artifact.folder.name for model in left}
    order = np.full((2, len(models)), -1)  # of each model: its company, its index in it
    for number, names in enumerate(progress_folders.list_interrupted(models[0].artifact.workdir)):
        if set(names) <= here.keys() and set(names) & todo:
            for place, name in enumerate(names):
                order[:, here[name]] = number, place
    found: dict[int, list[tuple[int, Model]]] = {}
    for model, (number, place) in zip(models, agree_on(order).T.tolist(), strict=True):
        if number >= 0:
            found.setdefault(number, []).append((place, model))
    return [[model for _, model in sorted(some, key=lambda one: one[0])] for some in found.values()]


def without(models: Sequence[Model], others: Sequence[Model]) -> list[Model]:
    return [model for model in models if model not in others]

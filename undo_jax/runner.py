"""Makes the models of a graph: together those that can train together, and none twice."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from undo_jax import artifacts, progress_folders, steps
from undo_jax.candidates import samples
from undo_jax.graph import Model, group_key, is_trained
from undo_jax.log import console, last
from undo_jax.population.loop import diverged
from undo_jax.settings import scorer
from undo_jax.trainer import Run, companies, train


def make(run: Run, models: Sequence[Model], wanted: Collection[Model]) -> None:
    """Make those of the models that are wanted and not finished, each after its parents.

    Raises FileNotFoundError if a model is needed that is neither wanted nor finished, and
    ValueError if one has diverged that others are made from.
    """
    kept = _agreed([m in wanted and artifacts.kept(m.artifact) for m in models])
    finished = [m for m, done in zip(models, kept, strict=True) if done]
    whole = _agreed([m in finished and _has_steps(m) for m in models])
    left = [m for m, done in zip(models, whole, strict=True) if m in wanted and not done]
    _judge(run, list(filter(_vital, finished)))
    interrupted = _interrupted(models, left)
    while left:
        ready = (one for one in interrupted if not any(set(m.parents) & set(left) for m in one))
        if (company := next(ready, None)) is not None:
            interrupted.remove(company)
            train(run, company, [m for m in company if m not in left or m in finished])
            left = _without(left, company)
            _judge(run, company)
            continue
        waiting = [model for company in interrupted for model in company]
        group = _next(_without(left, waiting), left)
        for company in companies(run, group) if is_trained(group[0].recipe) else [group]:
            if is_trained(company[0].recipe):
                train(run, company, [model for model in company if model in finished])
            else:
                _compute(run, company[0])
            left = _without(left, company)
            _judge(run, company)
    progress_folders.clear_progress(models[0].artifact.workdir)


def _has_steps(model: Model) -> bool:
    """Whether the parameters of all steps to keep exist, up to where a finished training ended."""
    end = model.artifact.summary().get("steps", 0)
    wanted = [step for step in getattr(model.recipe, "keeps", ()) if step <= end]
    return all(steps.summary(model.artifact, step) for step in wanted)


def _next(some: Sequence[Model], left: Sequence[Model]) -> list[Model]:
    """The models to make now, of `some` of those `left`: a group that can train together.

    Complete groups come before those in which some models still wait for parents. Raises
    FileNotFoundError if a parent is neither finished nor to be made.
    """
    groups: dict[str, list[Model]] = {}
    for model in some:
        trained = is_trained(model.recipe)
        name = group_key(model.recipe) if trained else model.artifact.fingerprint  # type: ignore
        groups.setdefault(name, []).append(model)
    ready = {
        name: [model for model in group if not set(model.parents) & set(left)]
        for name, group in groups.items()
    }
    names = [name for name in groups if ready[name]]
    first = min(names, key=lambda name: len(groups[name]) - len(ready[name]))
    for model in ready[first]:
        for parent in model.parents:
            parent.artifact.summary()
    return ready[first]


def _compute(run: Run, model: Model) -> None:
    """Make a model that is not trained."""
    recipe: Any = model.recipe
    key = model.key if recipe.draw else None
    given = [*(run.load(parent)() for parent in model.parents), *samples(run, model)]
    params = recipe.make(run.mesh, key, *given)
    scores = {}
    if recipe.scored:
        scores = scorer(run.setting, run.material, run.mesh)(recipe.lm, params)
    artifacts.begin(model.artifact)
    tags = recipe.tags(None) if hasattr(recipe, "tags") else {}
    artifacts.keep(model.artifact, params, scores, **tags)


def _interrupted(models: Sequence[Model], left: Sequence[Model]) -> list[list[Model]]:
    """Companies whose training was interrupted and of which some models are still to be made.

    Only those whose models are all among `models`; others are resumed by their own experiment.
    """
    here = {model.artifact.folder.name: index for index, model in enumerate(models)}
    todo = {model.artifact.folder.name for model in left}
    order = np.full((2, len(models)), -1)  # of each model: its company, its index in it
    for number, names in enumerate(progress_folders.interrupted(models[0].artifact.workdir)):
        if set(names) <= here.keys() and set(names) & todo:
            for place, name in enumerate(names):
                order[:, here[name]] = number, place
    found: dict[int, list[tuple[int, Model]]] = {}
    for model, (number, place) in zip(models, _agreed(order).T.tolist(), strict=True):
        if number >= 0:
            found.setdefault(number, []).append((place, model))
    return [[model for _, model in sorted(some, key=lambda one: one[0])] for some in found.values()]


def _vital(model: Model) -> bool:
    return getattr(model.recipe, "vital", False)


def _judge(run: Run, made: Sequence[Model]) -> None:
    """Print which models have diverged, or learned nothing.

    Raises ValueError for those that have diverged and that others are made from.
    """
    timely = [name for name, metric in run.setting.metrics.items() if metric.at == "evaluation"]
    scores = {model: model.artifact.summary().get("eval", {}) for model in made}
    lost = [m for m in made if diverged({n: x for n, x in scores[m].items() if n in timely})]
    if fatal := [_who(model) for model in lost if _vital(model)]:
        raise ValueError(
            f"{' and '.join(fatal)}, diverged: its scores are not finite, and those of what is "
            "made of it would not be: lower its learning rate, or give another base"
        )
    for model in lost:
        said = f"{_who(model)}, diverged: its scores are not finite; lower its learning rate"
        console.print(said, soft_wrap=True)
    tokens = run.setting.get_tokenizer().vocab_size
    for model in filter(_vital, made):
        loss, guess = last(model.artifact.folder, "loss"), math.log(tokens)
        if loss is not None and not loss < guess:
            console.print(
                f"{_who(model)}, has learned nothing: its loss ends at {loss:.3g}, a guess among "
                f"{tokens} tokens has {guess:.3g}; change its learning rate, or train it longer",
                soft_wrap=True,
            )


def _who(model: Model) -> str:
    seed = "" if model.artifact.seed is None else f", seed {model.artifact.seed}"
    return f"{model.recipe.kind} of {model.artifact.model}{seed}"


def _without(models: Sequence[Model], others: Sequence[Model]) -> list[Model]:
    return [model for model in models if model not in others]


def _agreed(values: Any) -> np.ndarray:
    """Process 0's values, on every process."""
    values = np.asarray(values)
    if jax.process_count() > 1 and values.size:
        values = np.asarray(multihost_utils.broadcast_one_to_all(values))
    return values

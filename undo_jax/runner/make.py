"""Makes the models of a graph: together those that can train together, and none twice.

`split_group` cuts those that can into groups of at most `together` trials, which fit memory.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from undo_jax.evals.scoring import make_scorer
from undo_jax.graph.model_graph import ModelNode, group_key
from undo_jax.graph.recipe import ComputedRecipe, TrainedRecipe
from undo_jax.graph.recipe_checks import compute_params
from undo_jax.logs.log import show_waiting
from undo_jax.runner.run_context import RunContext
from undo_jax.runner.score_models import describe_model, report_failures, score_models
from undo_jax.runner.split_group import split_group
from undo_jax.runner.train_group import train_group
from undo_jax.runner.unfinished import find_work, interrupted_groups, without
from undo_jax.setting import Setting
from undo_jax.store import artifacts, progress_folders


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
            # finished ones train along: in a group that was interrupted, or to make snapshots
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
    params = compute_params(recipe, run.mesh, key, parents, run.read_samples(model))
    scorer = make_scorer(run.setting, run.eval_data, run.mesh) if recipe.is_scored else None
    scores, lists = scorer(recipe.lm, params) if scorer else ({}, {})
    artifacts.prepare_folder(model.artifact)
    artifacts.save_artifact(model.artifact, params, scores, lists, **recipe.record_tags(None))


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
    interrupted = interrupted_groups(models, to_make)
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


def _next_models(
    models: Sequence[ModelNode], to_make: Sequence[ModelNode], setting: Setting
) -> list[ModelNode]:
    """Returns the models to make now: some that can train together and have all their parents.

    Complete groups come before those in which some models still wait for parents.
    """
    groups: dict[str, list[ModelNode]] = {}
    for model in models:
        recipe, name = model.recipe, model.artifact.fingerprint
        key = group_key(recipe, setting) if isinstance(recipe, TrainedRecipe) else name
        groups.setdefault(key, []).append(model)
    ready = [
        [model for model in group if not set(model.parents) & set(to_make)]
        for group in groups.values()
    ]
    pairs = [pair for pair in zip(groups.values(), ready, strict=True) if pair[1]]
    return min(pairs, key=lambda pair: len(pair[0]) - len(pair[1]))[1]

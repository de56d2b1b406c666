"""Makes the models of a graph: together those that can train together, and none twice."""

import math
from collections.abc import Callable, Collection, Sequence

from undo_jax.evals.scoring import make_scorer
from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.recipe import ComputedRecipe, TrainedRecipe
from undo_jax.logs.log import console, read_last_number, show_waiting
from undo_jax.runner.scheduler import find_work, order_groups, without
from undo_jax.runner.score_models import score_models
from undo_jax.runner.train_group import train_group
from undo_jax.runner.trials import RunContext, read_samples
from undo_jax.store import artifacts, progress_folders
from undo_jax.training.loop import has_diverged


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
    _check_scores(run, [model for model in finished if model.recipe.must_converge])
    score_models(run, [model for model in finished if model not in to_make])
    for group in order_groups(run, models, to_make):
        if isinstance(group[0].recipe, TrainedRecipe):
            on_start()
            train_group(run, group, [m for m in group if m not in to_make or m in finished])
        else:
            with show_waiting(_describe(group[0])):
                _compute(run, group[0])
            on_start()
        to_make = without(to_make, group)
        _check_scores(run, group)
        score_models(run, group)
    progress_folders.remove_finished_progress(models[0].artifact.workdir)


def _compute(run: RunContext, model: ModelNode) -> None:
    """Makes a model that is not trained."""
    recipe = model.recipe
    assert isinstance(recipe, ComputedRecipe), f"{recipe.kind} is trained"
    key = None if recipe.is_deterministic else model.key
    parents = [run.load(parent)() for parent in model.parents]
    params = recipe.compute(run.mesh, key, parents, read_samples(run, model))
    scores, lists = {}, {}
    if recipe.is_scored:
        scores, lists = make_scorer(run.setting, run.eval_data, run.mesh)(recipe.lm, params)
    artifacts.prepare_folder(model.artifact)
    artifacts.save_artifact(model.artifact, params, scores, lists, **recipe.record_tags(None))


def _check_scores(run: RunContext, models: Sequence[ModelNode]) -> None:
    """Prints which models have diverged, or learned nothing.

    Raises ValueError for those that have diverged and that others are made from.
    """
    names = [name for name, metric in run.setting.metrics.items() if metric.at == "evaluation"]
    scores = {model: model.artifact.summary().get("eval", {}) for model in models}
    diverged = [
        model
        for model in models
        if has_diverged({name: scores[model][name] for name in names if name in scores[model]})
    ]
    if fatal := [_describe(model) for model in diverged if model.recipe.must_converge]:
        raise ValueError(
            f"{' and '.join(fatal)}, diverged: its scores are not finite, and those of what is "
            "made of it would not be: lower its learning rate, or give another base"
        )
    for model in diverged:
        message = (
            f"{_describe(model)}, diverged: its scores are not finite; lower its learning rate"
        )
        console.print(message, soft_wrap=True)
    vocab_size = run.setting.get_tokenizer().vocab_size
    for model in (model for model in models if model.recipe.must_converge):
        loss, uniform_loss = (
            read_last_number(model.artifact.folder, "loss", after=1),
            math.log(vocab_size),
        )
        if loss is not None and not loss < uniform_loss:
            console.print(
                f"{_describe(model)}, has learned nothing: its loss ends at {loss:.3g}, a guess "
                f"among {vocab_size} tokens has {uniform_loss:.3g}; change its learning rate, or "
                "train it longer",
                soft_wrap=True,
            )


def _describe(model: ModelNode) -> str:
    seed = "" if model.artifact.seed is None else f", seed {model.artifact.seed}"
    return f"{model.recipe.kind} of {model.artifact.model}{seed}"

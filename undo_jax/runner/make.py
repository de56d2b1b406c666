"""Makes the models of a graph: together those that can train together, and none twice."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from undo_jax.graph.nodes import Model, is_trained
from undo_jax.logs.log import console, read_last_number, show_waiting
from undo_jax.runner.scheduler import companies_in_order, todo, without
from undo_jax.runner.train_group import Run, train
from undo_jax.runner.trials import samples
from undo_jax.setting import scorer
from undo_jax.store import artifacts, progress_folders
from undo_jax.training.loop import diverged


def make(
    run: Run,
    models: Sequence[Model],
    wanted: Collection[Model],
    begins: Callable[[], None] = lambda: None,
) -> None:
    """Make those of the models that are wanted and not finished, each after its parents.

    `begins` is called before each training, and after what is made without one.

    Raises FileNotFoundError if a model is needed that is neither wanted nor finished, and
    ValueError if one has diverged that others are made from.
    """
    left, finished = todo(models, wanted)
    _judge(run, list(filter(_vital, finished)))
    for company in companies_in_order(run, models, left):
        if is_trained(company[0].recipe):
            begins()
            train(run, company, [m for m in company if m not in left or m in finished])
        else:
            with show_waiting(_who(company[0])):
                _compute(run, company[0])
            begins()
        left = without(left, company)
        _judge(run, company)
    progress_folders.remove_finished_progress(models[0].artifact.workdir)


def _compute(run: Run, model: Model) -> None:
    """Make a model that is not trained."""
    recipe: Any = model.recipe
    key = model.key if recipe.rng_name else None
    given = [*(run.load(parent)() for parent in model.parents), *samples(run, model)]
    params = recipe.make(run.mesh, key, *given)
    scores, lists = {}, {}
    if recipe.scored:
        scores, lists = scorer(run.setting, run.eval_data, run.mesh)(recipe.lm, params)
    artifacts.prepare_folder(model.artifact)
    tags = recipe.tags(None) if hasattr(recipe, "tags") else {}
    artifacts.save_artifact(model.artifact, params, scores, lists, **tags)


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
        loss, guess = read_last_number(model.artifact.folder, "loss", after=1), math.log(tokens)
        if loss is not None and not loss < guess:
            console.print(
                f"{_who(model)}, has learned nothing: its loss ends at {loss:.3g}, a guess among "
                f"{tokens} tokens has {guess:.3g}; change its learning rate, or train it longer",
                soft_wrap=True,
            )


def _who(model: Model) -> str:
    seed = "" if model.artifact.seed is None else f", seed {model.artifact.seed}"
    return f"{model.recipe.kind} of {model.artifact.model}{seed}"

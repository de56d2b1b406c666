"""Trains a group of models together: a trial is one model with one of its learning rates.

Progress is in `progress-*/`, removed at the end; `CheckpointPolicy` says how often it is saved.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from undo_jax.fit.cached import possible, with_states
from undo_jax.graph.model_graph import ModelNode, traceable_kwargs, train_spec
from undo_jax.logs.log import Log, open_log, show_waiting
from undo_jax.logs.sink import Target
from undo_jax.runner import save_trained, teacher_cache
from undo_jax.runner.run_context import RunContext, scores_of_parents, trained_recipe
from undo_jax.runtime.preemption import Stop, defer_signals
from undo_jax.runtime.sharding import param_shardings
from undo_jax.sinks.jsonl import jsonl
from undo_jax.store import artifacts, progress_folders
from undo_jax.store.artifacts import to_json
from undo_jax.store.train_checkpoints import open_checkpoints
from undo_jax.training.loop import has_diverged, train_together
from undo_jax.training.population import Evaluator, Population, Trial, TrialInputs, TrialResult
from undo_jax.types import Lazy, Scores


def train_group(
    run: RunContext, group: Sequence[ModelNode], finished: Collection[ModelNode] = ()
) -> None:
    """Trains models together, each with all its learning rates, and saves the strongest trials.

    If asked to stop, training is saved and stops before a step. Evaluation and saving after the
    last step are not interrupted.

    Args:
        run: where the models are made.
        group: models that train together.
        finished: models of the group that train along and are left as they are, so that the others
            are trained in the group that was interrupted.
    """
    # 1. What is trained
    recipe = trained_recipe(group[0])
    parent_scores = {model: scores_of_parents(model) for model in group}
    folder = progress_folders.make_progress_folder([model.artifact for model in group])
    training_name = progress_folders.read_training_name(folder)
    spec = train_spec(recipe, run.setting)
    is_cached = run.cache_teachers and possible(spec)
    spec = with_states(spec) if is_cached else spec
    model_of = make_trials(run, group, parent_scores, finished, training_name, is_cached)
    trials = list(model_of)
    evaluation = Evaluator(run.setting.evaluate, run.eval_data)
    has_snapshots = any(model.recipe.snapshot_steps for model in group)
    save_snapshots = partial(save_trained.save_snapshots, model_of)
    on_evaluation = save_snapshots if has_snapshots else None
    # a user's code that raises after the last step must not cost the training
    has_user_code = bool(run.sinks) or any(
        metric.at == "end" for metric in run.setting.metrics.values()
    )

    # 2. Folders; snapshots of a training that resumes stay
    resumes = any(folder.glob("from-*"))
    for model in group:
        if model not in finished:
            artifacts.prepare_folder(model.artifact, remove_snapshots=not resumes)

    # 3. `together` trials at a time. `split_group` makes no larger group, but a model may have more
    # learning rates, and an interrupted group may resume with a smaller `together`
    title, size = f"{recipe.kind} × {len(trials)}", run.together
    targets = [(trial.target, trial.tags) for trial in trials]
    firsts = range(0, len(trials), size)
    steps_taken: list[int] = []
    diverged: list[bool] = []

    def train_from(first: int, log: Log, stop: Stop) -> list[TrialResult]:
        part = trials[first : first + size]
        saves_end = first + size < len(trials) or has_user_code
        part_log = replace(
            log, targets=targets[first : first + size], before=first // size * spec.training.steps
        )
        progress = open_checkpoints(folder / f"from-{first}", run.saving, stop, last=not saves_end)
        with progress as saves:
            population = Population(spec, evaluation, run.mesh, part)
            results = train_together(population, part_log, saves, on_evaluation)
        steps_taken.extend(result.steps for result in results)
        diverged.extend(has_diverged(result.scores) for result in results)
        return results

    strongest: save_trained.Strongest = {}
    names = save_trained.abbreviate([model.artifact.model for model in group])
    sinks, total_steps = (jsonl, *run.sinks), spec.training.steps * len(firsts)
    with defer_signals() as stop:
        with open_log(title, total_steps, targets, sinks, names) as log:
            for first in firsts:
                # holds the strongest alone: the states of all other trials before are freed
                strongest = {m: save_trained.fetch(result) for m, result in strongest.items()}
                strongest = save_trained.select_strongest(
                    model_of, strongest, train_from(first, log, stop)
                )
            ending = save_trained.describe_ending(
                recipe.stop_word, steps_taken, diverged, spec.training.steps
            )
            log.ends(ending)

        # 4. Last scores, and saving
        with show_waiting(f"{title}: last scores, and saving"):
            for model, result in strongest.items():
                if model not in finished:
                    save_trained.finish(run, model, result, parent_scores[model])
        progress_folders.remove_progress(folder)


def make_trials(
    run: RunContext,
    group: Sequence[ModelNode],
    parent_scores: Mapping[ModelNode, Mapping[str, Scores]],
    finished: Collection[ModelNode],
    training_name: str,
    is_cached: bool = False,
) -> dict[Trial, ModelNode]:
    """Returns every model of a group with each of its learning rates, as trials.

    Args:
        run: where the models are made.
        group: models that train together.
        parent_scores: for each model the scores of its parents, see `scores_of_parents`.
        finished: models of the group whose records go nowhere.
        training_name: a name of the training that stays the same when it is resumed.
        is_cached: whether a teacher's stored states are read instead of the teacher.
    """
    inputs: dict[Any, TrialInputs] = {}
    streams: dict[Any, Any] = {}
    trials = {}
    values = [traceable_kwargs(trained_recipe(model)) for model in group]
    varying = [name for name in values[0] if len({kwargs[name] for kwargs in values}) > 1]
    for model, kwargs in zip(group, values, strict=True):
        recipe = trained_recipe(model)

        # 1. Streams and references, which models share that read the same ones
        orders = {
            name: (stream, recipe.training.batch_size, model.artifact.seed)
            for name, stream in recipe.streams.items()
        }
        references = {name: model.parent(ref) for name, ref in recipe.references.items()}
        inputs_key = tuple(orders.items()), tuple(references.items())
        if inputs_key not in inputs:
            for order in orders.values():
                if order not in streams:
                    streams[order] = run.open_stream(*order)
            opened = {name: streams[order] for name, order in orders.items()}
            refs = {n: (ref.recipe.lm, run.load(ref)) for n, ref in references.items()}
            inputs[inputs_key] = shared = TrialInputs(opened, refs)
            if is_cached:
                inputs[inputs_key] = teacher_cache.use_stored_states(run, shared, references)

        # 2. A trial for each learning rate
        init_name, init_params = _init(run, model)
        tags = [recipe.record_tags(rate) for rate in recipe.learning_rates]
        sink_name = f"{training_name}-{model.artifact.fingerprint}"
        target = Target(model.artifact.folder, tags, run.experiment, sink_name)
        for learning_rate, trial_tags in zip(recipe.learning_rates, tags, strict=True):
            trial = Trial(
                init_name=init_name,
                init_params=init_params,
                key=model.key,
                learning_rate=learning_rate,
                inputs=inputs[inputs_key],
                should_stop=partial(recipe.should_stop, run.setting, parent_scores[model]),
                attack_score=partial(recipe.attack_score, run.setting, parent_scores[model]),
                loss_kwargs={name: kwargs[name] for name in varying},
                target=None if model in finished else target,
                tags=trial_tags,
            )
            trials[trial] = model
    return trials


def _init(run: RunContext, model: ModelNode) -> tuple[str, Lazy]:
    """Returns a model's first parameters: a name for them, and a function that makes them."""
    recipe = trained_recipe(model)
    if recipe.start is None:
        init = jax.jit(recipe.lm.init, out_shardings=param_shardings(recipe.lm, run.mesh))
        return model.artifact.fingerprint, partial(init, model.key)
    start = model.parent(recipe.start)
    parents = list(model.parents)
    parents.remove(start)
    load, load_others = run.load(start), [run.load(parent) for parent in parents]
    if recipe.start_transform is None:
        return start.artifact.fingerprint, load
    identity = recipe.rng_name, model.artifact.seed, recipe.lm, recipe.start_transform
    fingerprints = [parent.artifact.fingerprint for parent in model.parents]
    return json.dumps([fingerprints, to_json(identity)]), lambda: recipe.transform_start(
        run.mesh, model.key, load(), [load_other() for load_other in load_others]
    )

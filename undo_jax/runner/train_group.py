"""Trains a group of models as one population; the strongest trial of each becomes its artifact."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from undo_jax.evals.scoring import score_at_end
from undo_jax.fit.cached import STATES, possible
from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.train_specs import train_spec
from undo_jax.logs.log import Log, open_log, show_waiting
from undo_jax.runner import teacher_cache
from undo_jax.runner.trials import RunContext, make_trials, scores_of_parents, trained_recipe
from undo_jax.runtime.preemption import Stop, defer_signals
from undo_jax.sinks.jsonl import jsonl
from undo_jax.store import artifacts, progress_folders, snapshots
from undo_jax.store.train_checkpoints import open_checkpoints
from undo_jax.training.loop import has_diverged, train_together
from undo_jax.training.population import Evaluator
from undo_jax.training.trial import Trial, TrialResult
from undo_jax.types import Scores

Strongest = dict[ModelNode, TrialResult]


def train_group(
    run: RunContext, group: Sequence[ModelNode], finished: Collection[ModelNode] = ()
) -> None:
    """Trains models together, each with all its learning rates, and saves the strongest trials.

    If asked to stop, training is saved and stops before a step. Evaluator and saving after the
    last step are not interrupted.

    Args:
        run: where the models are made.
        group: models that train as one program.
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
    use_cache = partial(teacher_cache.use_stored_states, run) if is_cached else None
    model_of = make_trials(run, group, parent_scores, finished, training_name, use_cache)
    trials = list(model_of)
    if is_cached:
        refs = {name: lm for name, (lm, _) in trials[0].inputs.refs.items()}
        spec = replace(spec, refs=refs, batch_fields=(*spec.batch_fields, STATES))
    evaluation = Evaluator(run.setting.evaluate, run.eval_data)
    has_snapshots = any(model.recipe.snapshot_steps for model in group)
    # a user's code that raises after the last step must not cost the training
    runs_user_code = bool(run.sinks) or any(
        metric.at == "end" for metric in run.setting.metrics.values()
    )

    # 2. Folders; snapshots of a training that resumes stay
    resumes = any(folder.glob("from-*"))
    for model in group:
        if model not in finished:
            artifacts.prepare_folder(model.artifact, remove_snapshots=not resumes)

    # 3. As many trials at a time as train side by side
    title, size = f"{recipe.kind} × {len(trials)}", run.together
    targets = [(trial.target, trial.tags) for trial in trials]
    starts = range(0, len(trials), size)
    steps_taken: list[int] = []
    diverged: list[bool] = []

    def train_from(first: int, log: Log, stop: Stop) -> list[TrialResult]:
        part = trials[first : first + size]
        keeps_last = first + size < len(trials) or runs_user_code
        part_log = replace(
            log, targets=targets[first : first + size], before=first // size * spec.training.steps
        )
        on_evaluation = partial(_save_snapshots, run, model_of) if has_snapshots else None
        progress = open_checkpoints(folder / f"from-{first}", run.saving, stop, not keeps_last)
        with progress as saves:
            results = train_together(
                spec, evaluation, run.mesh, part, part_log, saves, on_evaluation
            )
        steps_taken.extend(result.steps for result in results)
        diverged.extend(has_diverged(result.scores) for result in results)
        return results

    strongest: Strongest = {}
    names = abbreviate([model.artifact.model for model in group])
    sinks, total_steps = (jsonl, *run.sinks), spec.training.steps * len(starts)
    with defer_signals() as stop:
        with open_log(title, total_steps, targets, sinks, names) as log:
            for first in starts:
                # holds the strongest alone: the states of all other trials before are freed
                strongest = {model: _fetched(result) for model, result in strongest.items()}
                strongest = _select_strongest(
                    run, model_of, strongest, train_from(first, log, stop)
                )
            log.ends(describe_ending(recipe.stop_word, steps_taken, diverged, spec.training.steps))

        # 4. Last scores, and saving
        with show_waiting(f"{title}: last scores, and saving"):
            for model, result in strongest.items():
                if model not in finished:
                    _finish(run, model, result, parent_scores[model])
        progress_folders.remove_progress(folder)


def abbreviate(names: Sequence[str]) -> str:
    """Returns the first two names, each once, and the number of the others."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def describe_ending(
    stop_word: str, steps_taken: Sequence[int], diverged: Sequence[bool], steps: int
) -> str:
    """Says how trials ended if all stopped before the last step: "all recovered at step 850".

    Args:
        stop_word: the word for trials that the stop rule ended.
        steps_taken: the number of steps of each trial.
        diverged: whether each trial has diverged.
        steps: the number of steps without early stopping.
    """
    last = max(steps_taken)
    if last >= steps:
        return ""
    counts = {stop_word: len(diverged) - sum(diverged), "diverged": sum(diverged)}
    parts = [
        f"{'all' if count == len(diverged) else count} {word}"
        for word, count in counts.items()
        if count
    ]
    return f"{', '.join(parts)} at step {last}"


def _save_snapshots(
    run: RunContext,
    model_of: Mapping[Trial, ModelNode],
    step: int,
    evaluated: Mapping[int, TrialResult],
) -> None:
    """Saves the strongest trial of each model at this step, where that is asked for."""
    strongest = _select_strongest(run, model_of, {}, list(evaluated.values()))
    for model, result in strongest.items():
        recipe = trained_recipe(model)
        if step not in recipe.snapshot_steps:
            continue
        saved = snapshots.read_summary(model.artifact, step)
        attack_score = partial(recipe.attack_score, run.setting)
        if not (saved and attack_score(saved["eval"]) >= attack_score(result.scores)):
            tags = recipe.record_tags(result.trial.learning_rate)
            snapshots.save_snapshot(model.artifact, step, result.params(), result.scores, **tags)


def _select_strongest(
    run: RunContext,
    model_of: Mapping[Trial, ModelNode],
    strongest: Strongest,
    results: Sequence[TrialResult],
) -> Strongest:
    """Returns the strongest result of each model, of old and new ones; the first of equals."""
    strongest = dict(strongest)
    for result in results:
        model = model_of[result.trial]
        attack_score = partial(trained_recipe(model).attack_score, run.setting)
        best = strongest.get(model)
        if best is None or attack_score(result.scores) > attack_score(best.scores):
            strongest[model] = result
    return strongest


def _fetched(result: TrialResult) -> TrialResult:
    """Returns a result that holds its parameters and no longer needs the population's states."""
    params = result.params()
    return result._replace(params=lambda: params)


def _finish(
    run: RunContext, model: ModelNode, result: TrialResult, parent_scores: Mapping[str, Scores]
) -> None:
    """Saves a trained model and marks its artifact as finished.

    FLOPs count a training pass as three forward passes and a reference model as one: an upper
    bound, for a loss may not run all of them, or not all layers.
    """
    recipe = trained_recipe(model)
    spec = train_spec(recipe, run.setting)
    tokens = result.steps * spec.tokens
    passes = 3 * recipe.lm.forward_flops(spec.row_length)
    passes += sum(lm.forward_flops(spec.row_length) for lm in spec.refs.values())
    cost = {"steps": result.steps, "tokens": tokens, "flops": tokens * passes}
    fields = recipe.summary_fields(run.setting, parent_scores, result.scores)
    tags = recipe.record_tags(result.trial.learning_rate)
    params = result.params()
    end_scores, lists = score_at_end(run.setting, recipe.lm, params)
    scores = {**result.scores, **end_scores}
    artifacts.save_artifact(model.artifact, params, scores, lists, **cost, **fields | tags)

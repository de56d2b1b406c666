"""Which trials become artifacts and snapshots, and how they are saved."""

from collections.abc import Mapping, Sequence

from undo_jax.evals.scoring import score_at_end
from undo_jax.graph.model_graph import ModelNode, train_spec
from undo_jax.runner.run_context import RunContext, trained_recipe
from undo_jax.store import artifacts, snapshots
from undo_jax.training.population import Trial, TrialResult
from undo_jax.types import Scores

Strongest = dict[ModelNode, TrialResult]


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


def save_snapshots(
    model_of: Mapping[Trial, ModelNode], step: int, evaluated: Mapping[int, TrialResult]
) -> None:
    """Saves the strongest trial of each model at this step, where that is asked for."""
    strongest = select_strongest(model_of, {}, list(evaluated.values()))
    for model, result in strongest.items():
        recipe = trained_recipe(model)
        if step not in recipe.snapshot_steps:
            continue
        saved = snapshots.read_summary(model.artifact, step)
        attack_score = result.trial.attack_score
        if not (saved and attack_score(saved["eval"]) >= attack_score(result.scores)):
            tags = recipe.record_tags(result.trial.learning_rate)
            snapshots.save_snapshot(model.artifact, step, result.params(), result.scores, **tags)


def select_strongest(
    model_of: Mapping[Trial, ModelNode], strongest: Strongest, results: Sequence[TrialResult]
) -> Strongest:
    """Returns the strongest result of each model, of old and new ones; the first of equals."""
    strongest = dict(strongest)
    for result in results:
        model = model_of[result.trial]
        attack_score, best = result.trial.attack_score, strongest.get(model)
        if best is None or attack_score(result.scores) > attack_score(best.scores):
            strongest[model] = result
    return strongest


def fetch(result: TrialResult) -> TrialResult:
    """Returns a result that holds its parameters and no longer needs the population's states."""
    params = result.params()
    return result._replace(params=lambda: params)


def finish(
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

"""The trials of a group of models: each model with each of its learning rates."""

import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.data.streams import BatchSequence, RepeatedRows
from undo_jax.evals.scoring import Score
from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.recipe import ComputedRecipe, Stream, TrainedRecipe
from undo_jax.graph.train_specs import traceable_kwargs
from undo_jax.logs.sink import Sink, Target
from undo_jax.runtime.sharding import param_shardings
from undo_jax.setting import Setting
from undo_jax.store import artifacts
from undo_jax.store.artifacts import to_json
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.trial import Trial, TrialInputs
from undo_jax.types import Lazy, Packed, Scores

# replaces a teacher by its stored states: (inputs, the references' models by name) -> inputs
UseCache = Callable[[TrialInputs, Mapping[str, ModelNode]], TrialInputs]


@dataclass(frozen=True)
class RunContext:
    """Where models are made, and how they are scored."""

    setting: Setting
    mesh: Mesh
    saving: CheckpointPolicy
    together: int  # trials trained at once, at most
    experiment: str  # its name
    sinks: Sequence[Sink] = ()  # of records, besides the one that the report reads
    scores: Sequence[Score] = ()  # of finished models, besides those of the setting
    cache_teachers: bool = False  # a teacher's states are stored, and read by its students
    readers: dict[ModelNode, Lazy] = field(default_factory=dict)

    @cached_property
    def eval_data(self) -> Any:
        """The arrays of the setting's evaluation, replicated over all devices."""
        return jax.device_put(self.setting.eval_data(), NamedSharding(self.mesh, P()))

    def load(self, model: ModelNode) -> Lazy:
        """Returns a function that reads a finished model; the same one for all callers.

        Raises:
            FileNotFoundError: if the model is not finished.
        """
        model.artifact.summary()
        if model not in self.readers:
            self.readers[model] = partial(
                artifacts.load_params, model.artifact, model.recipe.lm, self.mesh
            )
        return self.readers[model]


def trained_recipe(model: ModelNode) -> TrainedRecipe:
    """Returns the recipe of a model that is trained."""
    assert isinstance(model.recipe, TrainedRecipe), f"{model.recipe.kind} is not trained"
    return model.recipe


def make_trials(
    run: RunContext,
    group: Sequence[ModelNode],
    parent_scores: Mapping[ModelNode, Mapping[str, Scores]],
    finished: Collection[ModelNode],
    training_name: str,
    use_cache: UseCache | None = None,
) -> dict[Trial, ModelNode]:
    """Returns every model of a group with each of its learning rates, as trials.

    Args:
        run: where the models are made.
        group: models that train together.
        parent_scores: for each model the scores of its parents, see `scores_of_parents`.
        finished: models of the group whose records go nowhere.
        training_name: a name of the training that stays the same when it is resumed.
        use_cache: replaces a teacher by its stored states; None: teachers are evaluated.
    """
    inputs: dict[Any, TrialInputs] = {}
    streams: dict[Any, Any] = {}
    trials, varying = {}, _varying_kwargs(group)
    for model in group:
        recipe = trained_recipe(model)

        # 1. Streams and references, which models share that read the same ones
        seed, batch_size = model.artifact.seed, recipe.training.batch_size
        orders = {
            name: (stream, batch_size, zlib.crc32(f"{stream.order}/{seed}".encode()))
            for name, stream in recipe.streams.items()
        }
        references = {name: model.parent(ref) for name, ref in recipe.references.items()}
        inputs_key = tuple(orders.items()), tuple(references.items())
        if inputs_key not in inputs:
            for order in orders.values():
                if order not in streams:
                    streams[order] = _open_stream(run.setting, *order)
            opened = {name: streams[order] for name, order in orders.items()}
            refs = {n: (ref.recipe.lm, run.load(ref)) for n, ref in references.items()}
            shared = TrialInputs(opened, refs)
            inputs[inputs_key] = use_cache(shared, references) if use_cache else shared

        # 2. A trial for each learning rate
        init_name, init_params = _init(run, model)
        tags = [recipe.record_tags(rate) for rate in recipe.learning_rates]
        sink_name = f"{training_name}-{model.artifact.fingerprint}"
        target = Target(model.artifact.folder, tags, run.experiment, sink_name)
        loss_kwargs = {name: traceable_kwargs(recipe)[name] for name in varying}
        for learning_rate, trial_tags in zip(recipe.learning_rates, tags, strict=True):
            trial = Trial(
                init_name=init_name,
                init_params=init_params,
                key=model.key,
                learning_rate=learning_rate,
                inputs=inputs[inputs_key],
                should_stop=partial(recipe.should_stop, run.setting, parent_scores[model]),
                loss_kwargs=loss_kwargs,
                target=None if model in finished else target,
                tags=trial_tags,
            )
            trials[trial] = model
    return trials


def _open_stream(setting: Setting, stream: Stream, batch_size: int, seed: int) -> Any:
    """Returns the batches of a recipe's stream."""
    batches = setting.stream(stream.name, batch_size, seed)
    if stream.rows is not None:
        batches = RepeatedRows(batches, batch_size, stream.rows)
    if stream.opening is not None:
        name, steps = stream.opening
        batches = BatchSequence(setting.stream(name, batch_size, seed), steps, batches)
    return batches


def read_samples(run: RunContext, model: ModelNode) -> dict[str, Packed]:
    """Returns the rows that `ComputedRecipe.compute` gets beside its parents' parameters."""
    recipe = model.recipe
    if not isinstance(recipe, ComputedRecipe) or not recipe.samples:
        return {}
    seeds = {
        name: zlib.crc32(f"{stream.order}/{model.artifact.seed}".encode())
        for name, stream in recipe.samples.items()
    }
    return {
        name: run.setting.stream(stream.name, recipe.sample_rows, seeds[name])[0]
        for name, stream in recipe.samples.items()
    }


def _varying_kwargs(group: Sequence[ModelNode]) -> list[str]:
    """Returns the keyword arguments of the loss in which the models of a group differ."""
    values = [traceable_kwargs(trained_recipe(model)) for model in group]
    return [name for name in values[0] if len({kwargs[name] for kwargs in values}) > 1]


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


def scores_of_parents(model: ModelNode) -> dict[str, Scores]:
    """Returns the last scores of the models that a training starts from or reads, by name."""
    recipe = trained_recipe(model)
    named = {**recipe.references, **({"start": recipe.start} if recipe.start else {})}
    return {
        name: model.parent(parent).artifact.summary().get("eval", {})
        for name, parent in named.items()
    }

"""Where the models of a run are made, and what they read there."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.data.streams import BatchSequence, MixedBatches, RepeatedRows
from undo_jax.evals.scoring import Score
from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.recipe import ComputedRecipe, Stream, TrainedRecipe
from undo_jax.logs.sink import Sink
from undo_jax.setting import Setting
from undo_jax.store import artifacts
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.types import Lazy, Packed, Scores


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

    def open_stream(self, stream: Stream, batch_size: int, seed: int | None) -> Any:
        """Returns the batches of a recipe's stream, in the order of this seed."""
        order = zlib.crc32(f"{stream.order}/{seed}".encode())
        other, other_rows = stream.mix or (None, 0)
        own_rows = batch_size - other_rows
        batches = self.setting.stream(stream.name, own_rows, order)
        if stream.rows is not None:
            batches = RepeatedRows(batches, own_rows, stream.rows)
        if other is not None:
            other_batches = self.setting.stream(other, other_rows, order)
            batches = MixedBatches(batches, own_rows, other_batches, batch_size)
        if stream.opening is not None:
            name, steps = stream.opening
            batches = BatchSequence(self.setting.stream(name, batch_size, order), steps, batches)
        return batches

    def read_samples(self, model: ModelNode) -> dict[str, Packed]:
        """Returns the rows that `ComputedRecipe.compute` gets beside its parents' parameters."""
        recipe = model.recipe
        if not isinstance(recipe, ComputedRecipe):
            return {}
        return {
            name: self.open_stream(stream, recipe.sample_rows, model.artifact.seed)[0]
            for name, stream in recipe.samples.items()
        }


def trained_recipe(model: ModelNode) -> TrainedRecipe:
    """Returns the recipe of a model that is trained."""
    assert isinstance(model.recipe, TrainedRecipe), f"{model.recipe.kind} is not trained"
    return model.recipe


def scores_of_parents(model: ModelNode) -> dict[str, Scores]:
    """Returns the last scores of the models that a training starts from or reads, by name."""
    recipe = trained_recipe(model)
    named = {**recipe.references, **({"start": recipe.start} if recipe.start else {})}
    return {
        name: model.parent(parent).artifact.summary().get("eval", {})
        for name, parent in named.items()
    }

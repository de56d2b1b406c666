"""Distillation with a filter on the teacher's targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from undo_jax.graph.recipe import Recipe, Stream
from undo_jax.losses import classified_distillation, filtered_distillation
from undo_jax.recipes.classifier import Classifier
from undo_jax.recipes.distill import Distill
from undo_jax.types import Loss


@dataclass(frozen=True)
class FilteredDistill(Distill):
    """`Distill`, but on rows of forget data every next token is to be equally likely.

    It is the distillation of one who can tell forget rows from others without fail, as a limit for
    classifiers that can do so less well. A batch has `training.batch_size` rows of each: halve it
    for the same tokens per step as in `Distill`.
    """

    loss: Loss = filtered_distillation

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {name: Stream(name, f"distill/{name}") for name in ("retain", "forget")}


@dataclass(frozen=True)
class ClassifiedDistill(Distill):
    """`Distill`, but on documents that a classifier takes for forget data every next
    token is to be equally likely.

    The stream has no labels: the classifier alone decides.
    """

    classifier: Classifier = field(kw_only=True)
    loss: Loss = classified_distillation

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return *super().parents, self.classifier.model, self.classifier

    @property
    def references(self) -> Mapping[str, Recipe]:
        return {
            **super().references, "base": self.classifier.model, "classifier": self.classifier
        }  # fmt: skip

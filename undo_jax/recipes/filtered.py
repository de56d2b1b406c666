"""Distillation with a filter on the teacher's targets."""

from collections.abc import Mapping
from dataclasses import dataclass

from undo_jax.losses import filtered_distillation
from undo_jax.recipe import Stream
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

"""A model after unlearning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from undo_jax.checks import check_function
from undo_jax.graph.recipe import Recipe, Stream, TrainedRecipe
from undo_jax.methods.maxent import maxent
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training, check_accumulation
from undo_jax.types import LM, Loss


@dataclass(frozen=True)
class Unlearn(TrainedRecipe):
    """Train by a method, on `training.batch_size` rows each of retain and forget (paper §2).

    The model before unlearning is its reference `base`. Raises ValueError for a method that is not
    a function, or that needs more arguments, or whole batches with accumulation.
    """

    kind: ClassVar[str] = "unlearn"
    role: ClassVar[str] = "unlearned"
    model: Recipe
    training: Training
    loss: Loss = maxent
    trains: Trains | None = None  # which parameters train; None: all
    rng_name: str = "unlearn"
    seed: int | None = None

    def __post_init__(self):
        check_function("method", self.loss, "lm", "params", "refs", "batch", "key")
        check_accumulation(self.loss, self.training.accumulation)

    @property
    def lm(self) -> LM:
        return self.model.lm

    @property
    def default_title(self) -> str:
        return str(getattr(getattr(self.loss, "func", self.loss), "__name__", "method"))

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return (self.model,)

    @property
    def start(self) -> Recipe | None:
        return self.model

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {name: Stream(name, f"unlearn/{name}") for name in ("retain", "forget")}

    @property
    def references(self) -> Mapping[str, Recipe]:
        return {"base": self.model}  # loaded for every method, also one that does not read it

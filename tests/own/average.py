"""A recipe in one file: the average of two models."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from undo_jax.graph.recipe import ComputedRecipe, Recipe
from undo_jax.types import LM


@dataclass(frozen=True)
class Average(ComputedRecipe):
    """The mean of the parameters of two models of one shape."""

    kind: ClassVar[str] = "average"
    role: ClassVar[str] = "unlearned"
    is_deterministic: ClassVar[bool] = True
    first: Recipe
    second: Recipe

    @property
    def lm(self) -> LM:
        return self.first.lm

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return self.first, self.second

    def compute(self, mesh, key, parents=(), samples=None):
        return jax.tree.map(lambda a, b: (a + b) / 2, *parents)

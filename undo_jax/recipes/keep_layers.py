"""A model of fewer layers: a smaller student."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from undo_jax.graph.recipe import ComputedRecipe, Recipe
from undo_jax.runtime.sharding import param_shardings
from undo_jax.types import LM, Key, Params


@dataclass(frozen=True)
class KeepLayers(ComputedRecipe):
    """Every `every`-th layer of a model: 0, every, 2 · every, ...; all else stays as it is.

    `Perturb(KeepLayers(model), alpha)` is such a student with noise. Raises ValueError for `every`
    below 1 and for a model whose LM has no `keeping(every)`, the LM of the layers that stay.
    """

    kind: ClassVar[str] = "layers"
    role: ClassVar[str] = "student"
    is_deterministic: ClassVar[bool] = True
    is_scored: ClassVar[bool] = False  # it has not learned to do without the others
    model: Recipe
    every: int = 2
    seed: int | None = None

    def __post_init__(self):
        if type(self.every) is not int or self.every < 1:
            raise ValueError(
                f"every={self.every!r}: give a whole number, 2 keeps every other layer"
            )
        if not hasattr(self.model.lm, "keeping"):
            raise ValueError(
                f"a {type(self.model.lm).__name__} does not say which of its layers are kept: give "
                "it a method keeping(every), or take a fresh student"
            )

    @property
    def lm(self) -> LM:
        whole: Any = self.model.lm
        return whole.keeping(self.every)

    @property
    def default_title(self) -> str:
        return f"{self.model.title} 1 of {self.every} layers"

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return (self.model,)

    def compute(
        self, mesh: Mesh, key: Key | None, parents: Sequence[Params] = (), samples=None
    ) -> Params:
        """Returns the parameters of the layers that stay, sharded as before."""
        (params,) = parents
        return jax.jit(self._cut, out_shardings=param_shardings(self.lm, mesh))(params)

    def _cut(self, params: Params) -> Params:
        return {**params, "layers": jax.tree.map(lambda w: w[:: self.every], params["layers"])}

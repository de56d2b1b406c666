"""A model that has learned nothing: the student of Unlearn-and-Distill."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax.sharding import Mesh

from undo_jax.graph.recipe import ComputedRecipe
from undo_jax.runtime.sharding import param_shardings
from undo_jax.types import LM, Key, Params


@dataclass(frozen=True)
class Fresh(ComputedRecipe):
    """Parameters freshly initialised by `lm.init` (paper §3); the model may be of any size."""

    kind: ClassVar[str] = "noise"
    role: ClassVar[str] = "student"
    is_scored: ClassVar[bool] = False  # it has learned nothing yet
    lm: LM
    rng_name: str = "noise/fresh"
    seed: int | None = None

    def compute(self, mesh: Mesh, key: Key | None, parents=(), samples=None) -> Params:
        """Returns freshly initialised parameters, sharded by the model's rules."""
        return jax.jit(self.lm.init, out_shardings=param_shardings(self.lm, mesh))(key)

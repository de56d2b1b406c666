"""A model that has learned nothing: the student of Unlearn-and-Distill."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax.sharding import Mesh

from undo_jax.graph.recipe import Recipe
from undo_jax.runtime.sharding import param_shardings
from undo_jax.types import LM, Key, Params


@dataclass(frozen=True)
class Fresh:
    """Parameters freshly initialised by `lm.init` (paper §3); the model may be of any size."""

    kind: ClassVar[str] = "noise"
    role: ClassVar[str] = "student"
    scored: ClassVar[bool] = False  # it has learned nothing yet
    lm: LM
    rng_name: str = "noise/fresh"
    seed: int | None = None

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return ()

    def make(self, mesh: Mesh, key: Key) -> Params:
        """Fresh parameters, sharded as the model's rules say."""
        return jax.jit(self.lm.init, out_shardings=param_shardings(self.lm, mesh))(key)

"""A model with noise mixed into its parameters: a student of UNDO."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
from jax.sharding import Mesh

from undo_jax.checks import check_function, function_name
from undo_jax.graph.recipe import ComputedRecipe, Recipe
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.runtime.sharding import param_shardings
from undo_jax.runtime.tree_checks import check_tree
from undo_jax.types import LM, Key, Noise, Params, shapes


@dataclass(frozen=True)
class Perturb(ComputedRecipe):
    """θ' = noise(θ, α): α = 0 leaves the model as it is, 1 is a full reset (paper §4).

    Raises ValueError for an alpha outside [0, 1].
    """

    kind: ClassVar[str] = "noise"
    role: ClassVar[str] = "student"
    is_scored: ClassVar[bool] = False  # it has learned nothing yet
    model: Recipe
    alpha: float
    noise: Noise = partial(shrink_perturb, beta=0.1)
    rng_name: str = "noise"
    seed: int | None = None

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is outside [0, 1]: 0 is no noise, 1 a full reset")
        check_function("noise", self.noise, "lm", "key", "params", "alpha")

    @property
    def lm(self) -> LM:
        return self.model.lm

    @property
    def default_title(self) -> str:
        return f"{self.model.title} α={self.alpha:g}"

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return (self.model,)

    @property
    def noise_share(self) -> float:
        return self.alpha

    def validate(self) -> None:
        """Traces the noise. Raises what it raises, and ValueError if it gives no parameters."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        noised = jax.eval_shape(partial(self.noise, self.lm), key, shapes(self.lm), self.alpha)
        check_tree(f"noise {function_name(self.noise)}", noised, shapes(self.lm))

    def compute(
        self, mesh: Mesh, key: Key | None, parents: Sequence[Params] = (), samples=None
    ) -> Params:
        """Returns the model's parameters with noise, sharded as before."""
        (params,), places = parents, param_shardings(self.lm, mesh)
        mix = jax.jit(self.noise, static_argnums=0, out_shardings=places)
        return mix(self.lm, key, params, self.alpha)

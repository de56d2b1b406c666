"""A model under attack: trained by the attacker, or only prepared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from undo_jax.attack import Attack
from undo_jax.graph.recipe import ComputedRecipe, Recipe, Stream, TrainedRecipe
from undo_jax.retain_bound import keeps_retain
from undo_jax.runtime.sharding import param_shardings
from undo_jax.runtime.tree_checks import check_tree
from undo_jax.setting import Setting
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Loss, Params, Scores, shapes


@dataclass(frozen=True)
class _Attacked(Recipe):
    """What `TrainedAttack` and `UntrainedAttack` share."""

    kind: ClassVar[str] = "relearn"
    role: ClassVar[str] = "attack"
    model: Recipe
    attack: Attack
    rng_name: str = "relearn"
    seed: int | None = None

    @property
    def lm(self) -> LM:
        return self.attack.adapt(self.model.lm)

    @property
    def title(self) -> str:  # all attacks on a model share one rng_name
        return f"{self.model.title} by {self.attack.name}"

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return self.model, *self.attack.extra_models

    def record_tags(self, learning_rate: float | None) -> dict[str, Any]:
        return {"attack": self.attack.name, "learning_rate": learning_rate}

    def validate(self) -> None:
        """Raises ValueError if the prepared parameters do not fit the model under attack."""
        prepare, lm = self.attack.prepare, self.model.lm
        if prepare is None:
            return
        key = jax.eval_shape(lambda: jax.random.key(0))
        other_shapes = [shapes(other.lm) for other in self.attack.extra_models]
        prepared = jax.eval_shape(partial(prepare, lm), shapes(lm), key, *other_shapes)
        check_tree(f"prepare of attack {self.attack.name}", prepared, shapes(self.lm))

    def _prepare(
        self, mesh: Mesh, key: Key | None, params: Params, other_parents: Sequence[Params]
    ) -> Params:
        """Returns the model's parameters as the attack prepares them."""
        if self.attack.prepare is None:
            return params
        places = param_shardings(self.lm, mesh)
        prepare = jax.jit(self.attack.prepare, static_argnums=0, out_shardings=places)
        return prepare(self.model.lm, params, key, *other_parents)


@dataclass(frozen=True)
class UntrainedAttack(_Attacked, ComputedRecipe):
    """A model after an attack that does not train: its parameters as the attack prepares them."""

    def compute(
        self, mesh: Mesh, key: Key | None, parents: Sequence[Params] = (), samples=None
    ) -> Params:
        """Returns the prepared parameters."""
        return self._prepare(mesh, key, parents[0], parents[1:])


@dataclass(frozen=True)
class TrainedAttack(_Attacked, TrainedRecipe):
    """A model after an attack that trains: the strongest learning rate's parameters at the end."""

    @property
    def training(self) -> Training:
        assert self.attack.training is not None, "an attack without training is an UntrainedAttack"
        return self.attack.training

    @property
    def loss(self) -> Loss:
        return self.attack.loss

    @property
    def trains(self) -> Trains | None:
        return self.attack.trains

    @property
    def start(self) -> Recipe | None:
        return self.model

    @property
    def start_transform(self) -> Any:
        return self.attack.prepare and (self.attack.prepare, self.attack.adapt)

    def transform_start(
        self, mesh: Mesh, key: Key, params: Params, other_parents: Sequence[Params]
    ) -> Params:
        return self._prepare(mesh, key, params, other_parents)

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {"train": Stream(*self.attack.data)}

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        return self.attack.keep_at

    @property
    def learning_rates(self) -> tuple[float, ...]:
        peak = self.training.optimizer.learning_rate
        return tuple(peak * factor for factor in self.attack.learning_rates)

    def attack_score(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> tuple[float, ...]:
        """Returns whether enough is retained, and the forget score, as larger is stronger."""
        (retain, forget), metrics, least = setting.headline, setting.metrics, self.attack.min_retain
        metric, before = self.attack.metric or forget, parent_scores["start"].get(retain, math.nan)
        score = scores[metric] if metrics[metric].higher_is_better else -scores[metric]
        is_kept = keeps_retain(scores[retain], before, metrics[retain].higher_is_better, least)
        return (is_kept, score) if math.isfinite(score) else (False, -math.inf)


def attacked(model: Recipe, attack: Attack, rng_name: str) -> TrainedAttack | UntrainedAttack:
    """Returns the recipe of a model under attack.

    Args:
        model: the recipe of the model that is attacked.
        attack: the attack.
        rng_name: names the random numbers; the same for all attacks on a model.
    """
    recipe = UntrainedAttack if attack.training is None else TrainedAttack
    return recipe(model, attack, rng_name=rng_name)

"""A model under attack."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from undo_jax.attack import Attack
from undo_jax.graph.recipe import Judge, Recipe, Simple, Stream, title
from undo_jax.runtime.sharding import param_shardings
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Loss, Params, Scores, shapes


@dataclass(frozen=True)
class Attacked(Simple):
    """A model after an attack: its parameters are those of the strongest rate at the end."""

    kind: ClassVar[str] = "relearn"
    role: ClassVar[str] = "attack"
    scored: ClassVar[bool] = True
    model: Recipe
    attack: Attack
    rng_name: str = "relearn"
    seed: int | None = None

    @property
    def lm(self) -> LM:
        return self.attack.adapt(self.model.lm)

    @property
    def title(self) -> str:
        """The display name of its artifact."""
        return f"{title(self.model)} by {self.attack.name}"

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return self.model, *self.attack.others

    @property
    def training(self) -> Training | None:
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
    def preparation(self) -> Any:  # type: ignore[override]
        return self.attack.prepare and (self.attack.prepare, self.attack.adapt)

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {"train": Stream(*self.attack.data)}

    @property
    def keeps(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.attack.keep_at

    @property
    def rates(self) -> tuple[float, ...]:
        if self.training is None:
            return ()
        return tuple(self.training.optimizer.learning_rate * r for r in self.attack.learning_rates)

    def strength(self, judge: Judge, scores: Scores) -> float:
        """How strong the attack was; one that diverged is the weakest."""
        metric = self.attack.metric or judge.headline[1]
        score = scores[metric] if judge.metrics[metric].higher_is_better else -scores[metric]
        return score if math.isfinite(score) else -math.inf

    def tags(self, rate: float | None) -> dict[str, Any]:
        return {"attack": self.attack.name, "learning_rate": rate}

    def make(self, mesh: Mesh, key: Key, params: Params, *others: Params) -> Params:
        """The model's parameters as the attack prepares them."""
        if self.attack.prepare is None:
            return params
        places = param_shardings(self.lm, mesh)
        prepare = jax.jit(self.attack.prepare, static_argnums=0, out_shardings=places)
        return prepare(self.model.lm, params, key, *others)

    def check(self) -> None:
        """Raises ValueError if the prepared parameters do not fit the model under attack."""
        prepare, lm = self.attack.prepare, self.model.lm
        if prepare is None:
            return
        key = jax.eval_shape(lambda: jax.random.key(0))
        others = [shapes(other.lm) for other in self.attack.others]
        made = jax.eval_shape(partial(prepare, lm), shapes(lm), key, *others)
        wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (shapes(self.lm), made))
        if wanted != found:
            raise ValueError(
                f"attack {self.attack.name} prepares parameters of other names or shapes than the "
                f"model has that it attacks: {found} and {wanted}"
            )

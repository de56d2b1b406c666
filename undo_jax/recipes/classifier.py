"""A classifier that tells forget documents from others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from undo_jax.graph.recipe import ComputedRecipe, Recipe, Stream
from undo_jax.models.probe import Probe, fit
from undo_jax.runtime.sharding import param_shardings
from undo_jax.training.train_step import rows
from undo_jax.types import Key, Packed, Params


@dataclass(frozen=True)
class Classifier(ComputedRecipe):
    """Logistic regression on a model's states, of a few labelled rows of retain and forget.

    An example is a document, or, in a setting without segments, a row. Raises ValueError for a
    layer that the model does not have, and for rows or a penalty that are not positive.
    """

    kind: ClassVar[str] = "classifier"
    role: ClassVar[str] = "classifier"
    is_language_model: ClassVar[bool] = False
    is_scored: ClassVar[bool] = False
    model: Recipe  # whose states it reads
    layer: int  # after so many layers
    rows: int = 64  # labelled rows of each stream
    penalty: float = 0.01  # see `probe.fit`
    rng_name: str = "classifier"
    seed: int | None = None

    def __post_init__(self):
        if not 0 <= self.layer <= self.model.lm.layers:
            raise ValueError(f"layer={self.layer}: this model has 0 to {self.model.lm.layers}")
        if self.rows < 1 or not self.penalty > 0:
            raise ValueError(
                f"rows={self.rows}, penalty={self.penalty}: a classifier needs both above 0"
            )

    @property
    def lm(self) -> Any:
        return Probe(self.model.lm, self.layer)

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return (self.model,)

    @property
    def samples(self) -> Mapping[str, Stream]:
        """The labelled streams, of which `compute` gets `rows` rows each."""
        return {name: Stream(name, f"classifier/{name}") for name in ("retain", "forget")}

    @property
    def sample_rows(self) -> int:
        return self.rows

    def compute(
        self,
        mesh: Mesh,
        key: Key | None,
        parents: Sequence[Params] = (),
        samples: Mapping[str, Packed] = MappingProxyType({}),
    ) -> Params:
        """Returns the fitted classifier; `samples` are the labelled rows."""
        (params,), places = parents, param_shardings(self.lm, mesh)
        fit_probe = partial(_fitted, self.lm, self.penalty)
        return jax.jit(fit_probe, out_shardings=places)(params, samples)


def _fitted(lm: Probe, penalty: float, params: Params, samples: Mapping[str, Packed]) -> Params:
    (retain, n), (forget, m) = (lm.pooled(params, rows(samples[s])) for s in ("retain", "forget"))
    labels = jnp.concatenate([jnp.zeros(len(n)), jnp.ones(len(m))])
    return fit(jnp.concatenate([retain, forget]), labels, jnp.concatenate([n, m]), penalty)

"""A model trained from fresh parameters: a base, or an oracle on retain data only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from undo_jax.graph.recipe import Stream, TrainedRecipe
from undo_jax.losses import language_modelling
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss


@dataclass(frozen=True)
class Pretrain(TrainedRecipe):
    """Next-token prediction on a stream of the setting (paper §2)."""

    kind: ClassVar[str] = "pretrain"
    role: ClassVar[str] = "base"
    must_converge: ClassVar[bool] = True
    lm: LM
    training: Training
    stream: str = "pretrain"
    loss: Loss = language_modelling
    rng_name: str = "pretrain"
    seed: int | None = None

    @property
    def default_title(self) -> str:
        return self.stream

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {"train": Stream(self.stream, "pretrain")}

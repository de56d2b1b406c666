"""What the compiled step of a training depends on."""

from collections.abc import Mapping
from dataclasses import dataclass

from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss


@dataclass(frozen=True)
class TrainSpec:
    """Everything that determines the program of a train step. Equal specs share one program."""

    lm: LM
    loss: Loss
    training: Training
    streams: tuple[str, ...]  # a batch has training.batch_size rows of each
    refs: Mapping[str, LM]  # the frozen models that the loss reads
    row_length: int  # T of every stream
    trains: Trains | None = None  # which parameters train; None: all
    batch_fields: tuple[str, ...] = ()  # what the streams have beside tokens, see `Packed`

    @property
    def tokens(self) -> int:
        """Number of tokens in the batch of one step."""
        return self.training.batch_size * self.row_length * len(self.streams)

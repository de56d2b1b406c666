"""What is retained and what forgotten: a setting owns its streams, its scores and its bar."""

from collections.abc import Mapping
from typing import Any, Protocol

from undo_jax.data.tokenizers import Tokenizer
from undo_jax.types import LM, Metrics, Params


class Setting(Protocol):
    """A setting is a frozen dataclass of scalars: it is part of every stage's fingerprint."""

    @property
    def row_length(self) -> int:
        """T, tokens predicted in a row."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """What the scores "retain" and "forget" measure."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Of both scores."""
        ...

    def get_tokenizer(self) -> Tokenizer:
        """Between texts and the tokens of the streams."""
        ...

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        """Batches of pretrain, oracle, retain or forget: `stream[step]`, int32 [B, T+1].

        `stream[step, start:stop]` are rows of one, for a process that needs no others.
        """
        ...

    def material(self) -> Any:
        """The arrays that `evaluate` needs."""
        ...

    def evaluate(self, lm: LM, params: Params, material: Any) -> Metrics:
        """Scores of one model; "retain" and "forget" are among them. Pure, to be jitted."""
        ...

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Whether a student's retain score is within `tolerance` of its teacher's."""
        ...

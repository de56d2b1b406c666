"""In context: forgotten examples stand before each question, and nothing is trained."""

from functools import partial
from typing import Any

from undo_jax.attack import Attack, name_relearning
from undo_jax.models.prompted import prompted
from undo_jax.training.train_step import Training
from undo_jax.types import Packed


def in_context(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    prefix: tuple[int, ...] = (),
    stream: str = "forget",
) -> Attack:
    """Evaluate with `prefix`, token ids as `shots` gives them, before each row.

    With a `training`, relearn with it there, too. Examples may hold the facts that are asked: then
    the oracle finds them as well, so compare with it.
    """
    documents = prefix.count(prefix[0]) if prefix else 0
    return Attack(
        name_relearning(f"in_context-{documents}", training, stream, "-relearn"),
        training,
        learning_rates,
        stream=stream,
        adapt=partial(prompted, prefix=tuple(prefix)),
        keep_at=keep_at,
    )


def shots(setting: Any, count: int, seed: int = 0, stream: str = "forget") -> tuple[int, ...]:
    """The first `count` documents of a stream, each from its BOS on, as ids of tokens.

    Raises ValueError for more than a row of the stream holds, and for fewer than 0.
    """
    if count < 0:
        raise ValueError(f"shots={count}: give 0 or more")
    row = setting.stream(stream, 1, seed)[0, slice(None)]
    tokens = (row.tokens if isinstance(row, Packed) else row)[0].tolist()
    opens = [i for i, token in enumerate(tokens) if token == setting.get_tokenizer().bos_id]
    if count >= len(opens) or opens[0] != 0:
        held = max(len(opens) - 1, 0)
        raise ValueError(
            f"shots={count}: a row of {stream} holds {held} whole documents, give fewer"
        )
    return tuple(tokens[: opens[count]])

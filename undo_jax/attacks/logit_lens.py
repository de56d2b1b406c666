"""Logit lens: what an early layer already says, read by the model's own head (2409.18025)."""

from functools import partial
from typing import Any

from undo_jax.attack import Attack, name_relearning
from undo_jax.models.wrappers import Lens
from undo_jax.training.train_step import Training


def logit_lens(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    layer: int = 1,
    stream: str = "forget",
) -> Attack:
    """Evaluate the last norm and the head on the residual stream after `layer` layers.

    With a `training`, relearn through them: the layers after `layer` have no part in it. As many
    layers as there are is the model itself. Raises ValueError for a layer that a model lacks.
    """
    adapt: Any = partial(Lens, layer=layer)
    return Attack(
        name_relearning(f"logit_lens-{layer}", training, stream, "-relearn"),
        training,
        learning_rates,
        stream=stream,
        adapt=adapt,
        keep_at=keep_at,
    )

"""Relearning by low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685)."""

from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.attack import Attack, name_relearning
from undo_jax.losses import cross_entropy
from undo_jax.models.adapters import adapted, dropping, with_adapters
from undo_jax.models.architecture import MATRICES, Adapters
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Batch, Key, Metrics, Params, Refs

ADAPTERS = Trains(((r"lora_[ab]$", None),))  # what trains


def lora(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.05,
    targets: tuple[str, ...] = MATRICES,
    stream: str = "forget",
) -> Attack:
    """Train A and B alone: x W + (α/r) x A B, with A from N(0, 1/r²) and B = 0.

    The defaults are those of the red team of TAR (arXiv 2408.00761). The weights of the model stay
    bit for bit, and are in memory once for all of its attacks that train together.

    Raises ValueError for what `Adapters` does not take, and a rank above the model's width.
    """
    adapters = replace(Adapters(rank, alpha, targets, dropout), dropout=0.0)  # the loss has it
    return Attack(
        name_relearning("lora", training, stream),
        training,
        learning_rates,
        stream=stream,
        loss=partial(dropped, dropout=dropout),
        adapt=partial(adapted, adapters=adapters),
        prepare=partial(beside, adapters=adapters),
        trains=ADAPTERS,
        keep_at=keep_at,
    )


def beside(lm: LM, params: Params, key: Key, *, adapters: Adapters) -> Params:
    """The model's parameters with fresh adapters."""
    return with_adapters(adapted(lm, adapters), params, key)


def dropped(
    lm: Any, params: Params, refs: Refs, batch: Batch, key: Key, *, dropout: float
) -> tuple[Any, Metrics]:
    """Cross entropy on `train`, with dropout of what the adapters read."""
    lm, params = dropping(lm, params, dropout, key)
    return cross_entropy(lm, params, batch["train"]), {}

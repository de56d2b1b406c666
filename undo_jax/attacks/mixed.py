"""Relearning on the pretraining mixture, which forget data are a part of."""

from undo_jax.attack import Attack
from undo_jax.training.train_step import Training


def mixed(
    training: Training, learning_rates: tuple[float, ...], keep_at: tuple[int, ...] = ()
) -> Attack:
    """Fine-tune the whole model on the pretraining mixture, once with every learning rate."""
    return Attack("mixed", training, learning_rates, stream="pretrain", keep_at=keep_at)

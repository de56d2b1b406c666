"""Relearning on forget data: what an attacker who has some of it can do (paper §5)."""

from undo_jax.attack import Attack
from undo_jax.training.train_step import Training


def forget(
    training: Training, learning_rates: tuple[float, ...], keep_at: tuple[int, ...] = ()
) -> Attack:
    """Fine-tune the whole model on forget rows, once with every learning rate."""
    return Attack("forget", training, learning_rates, stream="forget", keep_at=keep_at)

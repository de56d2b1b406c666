"""Relearning a permutation of the forgotten answers: a control that measures plasticity."""

from undo_jax.attack import Attack
from undo_jax.training.train_step import Training


def permuted(
    training: Training, learning_rates: tuple[float, ...], keep_at: tuple[int, ...] = ()
) -> Attack:
    """Fine-tune on the forgotten questions with each other's answers, examined on these.

    What a model learns no faster than this, which nobody knew, it did not remember.
    """
    return Attack(
        "permuted",
        training,
        learning_rates,
        stream="forget/permuted",
        metric="permuted",
        keep_at=keep_at,
        control=True,
    )

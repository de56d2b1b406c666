"""Relearning a permutation of the forgotten answers: a control that measures plasticity."""

from undo_jax.attack import Attack, among_retained
from undo_jax.training.train_step import Training


def permuted(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    retain_share: float = 0.0,
) -> Attack:
    """Fine-tune on the forgotten questions with each other's answers, examined on these.

    What a model learns no faster than this, which nobody knew, it did not remember.
    `retain_share` of each batch are retain rows: 0.5 is the control of `mixed-0.5`, and named
    `permuted-0.5`. Raises ValueError for a share outside [0, 1), and one of no whole number of
    rows.
    """
    attack = Attack(
        "permuted",
        training,
        learning_rates,
        stream="forget/permuted",
        metric="permuted",
        keep_at=keep_at,
        control=True,
    )
    return among_retained(attack, retain_share)

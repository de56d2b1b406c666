"""Relearning some of the forgotten facts, examined on others (RTT, arXiv 2410.08827)."""

from undo_jax.attack import Attack, among_retained
from undo_jax.training.train_step import Training


def held_out(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    relearned: str = "half",
    examined: str = "other_half",
    retain_share: float = 0.0,
) -> Attack:
    """Fine-tune on one fold of the forgotten facts; what counts is the score on another.

    The folds are those of the setting: a stream `forget/...` and a metric. In arithmetic and in
    `Facts` they are halves of families, so that no fact follows from another's twin. A model that
    knows none of it has learned how questions are asked: subtract the oracle's own peak. It is a
    control, for its score is not of all that was forgotten. `retain_share` is as in `permuted`.
    """
    attack = Attack(
        "held_out",
        training,
        learning_rates,
        stream=f"forget/{relearned}",
        metric=examined,
        keep_at=keep_at,
        control=True,
    )
    return among_retained(attack, retain_share)

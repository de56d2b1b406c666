"""Relearning on forget data among what is retained, so that the model stays useful."""

from undo_jax.attack import Attack, among_retained
from undo_jax.checks import check_share
from undo_jax.training.train_step import Training


def mixed(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    forget_share: float | None = None,
) -> Attack:
    """Fine-tune the whole model on the pretraining mixture, or on forget rows and retain rows.

    Args:
        training: the training.
        learning_rates: times the rate of the training's optimizer, each of which is trained.
        keep_at: steps at which parameters are kept.
        forget_share: of the rows of each batch, the others are retain rows; None: the pretraining
            mixture, whatever its share of forget data is.

    Raises:
        ValueError: for a share that is not between 0 and 1, and one of no whole number of rows.
    """
    if forget_share is None:
        return Attack("mixed", training, learning_rates, stream="pretrain", keep_at=keep_at)
    check_share("forget_share", forget_share, zero=False)
    attack = Attack("mixed", training, learning_rates, stream="forget", keep_at=keep_at)
    return among_retained(attack, 1 - forget_share)

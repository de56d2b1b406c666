"""Fine-tuning on what is retained, which may bring back what was unlearned (arXiv 2409.18025)."""

from undo_jax.attack import Attack
from undo_jax.training.train_step import Training


def benign(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    share: float = 1.0,
) -> Attack:
    """Retain rows for a share of the steps, then forget rows: 0.4 in TAR (arXiv 2408.00761).

    Raises ValueError for a share that is not above 0, or above 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give the share of steps on retain rows, above 0, up to 1")
    if share == 1:
        return Attack("benign", training, learning_rates, stream="retain", keep_at=keep_at)
    opening = "retain", share
    return Attack(f"benign-{share:g}", training, learning_rates, keep_at=keep_at, opening=opening)

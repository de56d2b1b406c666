"""Pruning, then relearning: small weights may be what keeps knowledge hidden."""

from dataclasses import replace

from undo_jax.attack import Attack
from undo_jax.attacks.noise import noise
from undo_jax.noises.prune import prune as smallest
from undo_jax.training.train_step import Training


def prune(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    share: float = 0.2,
    stream: str = "forget",
) -> Attack:
    """Set a share of each matrix to 0, the smallest; then, with a `training`, relearn from there.

    Nothing holds them at 0 while it relearns. Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is outside [0, 1]: give the share of weights to prune")
    made = noise(training, learning_rates, keep_at, alpha=share, kind=smallest, stream=stream)
    return replace(made, name=made.name.replace("noise", "prune", 1))

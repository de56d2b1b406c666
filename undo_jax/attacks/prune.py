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
    """Set the smallest weights of each matrix to 0; then, with a `training`, relearn from there.

    `share` is that of the weights; relearning changes them again. Raises ValueError for a share
    outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is outside [0, 1]: give the share of weights to prune")
    attack = noise(training, learning_rates, keep_at, alpha=share, kind=smallest, stream=stream)
    return replace(attack, name=attack.name.replace("noise", "prune", 1))

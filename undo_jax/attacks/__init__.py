"""Attacks on a model: one file each, with one function, named as the file, that gives an `Attack`.

An attack tries to bring back what was unlearned; of several the strongest counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from undo_jax.losses import language_modelling
from undo_jax.optim import Trains
from undo_jax.train import Training
from undo_jax.types import LM, Key, Loss, Params


def _same(lm: LM) -> LM:
    return lm


@dataclass(frozen=True)
class Attack:
    """What is done to a model, and how hard.

    First `prepare(lm, params, key)` makes the parameters of the model `adapt(lm)`, e.g. a quantised
    one, or one with an adapter beside frozen weights; None leaves them as they are. Then that model
    is trained on a stream of the setting with every learning rate, where there is a `training`.

    Raises ValueError for rates that are none, not positive, or twice the same.
    """

    name: str
    training: Training | None
    learning_rates: tuple[float, ...] = (1.0,)  # times training.optimizer.learning_rate
    stream: str = "forget"
    loss: Loss = language_modelling
    adapt: Callable[[LM], LM] = _same
    prepare: Callable[[LM, Params, Key], Params] | None = None
    trains: Trains | None = None  # what of the model `adapt(lm)`; None: everything

    def __post_init__(self):
        rates = self.learning_rates
        if not rates or not all(rate > 0 for rate in rates):
            raise ValueError(f"learning_rates={rates}: give positive rates")
        if len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates={rates}: one is given twice, leave it out")

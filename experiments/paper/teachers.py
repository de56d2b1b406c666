"""The unlearning methods of the figures, with their values for each setting and scale.

At the paper's scale the rates are those of the teachers that the official code distills; RMU keeps
the retain term that the committed runs of the official code leave out. At small scale they were
chosen by hand on seeds 0 to 2, to forget as much as they can and keep nearly all of retain.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from scales import Figure, at_rate

from undo_jax.graph.recipe import Recipe
from undo_jax.methods.graddiff import graddiff
from undo_jax.methods.npo import npo
from undo_jax.methods.rmu import rmu
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.training.optim import AdamW, Trains
from undo_jax.training.train_step import Training
from undo_jax.types import Loss

METHODS = ("GradDiff", "MaxEnt", "RMU")


def _small(steps: int, rate: float) -> Training:
    return Training(steps, 16, AdamW(rate, warmup=10, b2=0.98), eval_every=20)


def _paper(steps: int, rate: float, batch_size: int, every: int) -> Training:
    return Training(steps, batch_size, AdamW(rate), eval_every=every)


# (setting, scale, method): training, loss, layers whose MLP output matrix trains (None: all)
TRAININGS: dict[tuple[str, str, str], tuple[Training, Loss, range | None]] = {
    ("arithmetic", "small", "GradDiff"): (
        _small(40, 5e-4), partial(graddiff, retain_weight=5.0), None
    ),
    ("arithmetic", "small", "RMU"): (
        _small(200, 2e-3), partial(rmu, read_layer=2, retain_weight=5.0), range(2)
    ),
    ("language", "small", "GradDiff"): (
        _small(40, 5e-4), partial(graddiff, retain_weight=5.0), None
    ),
    ("language", "small", "RMU"): (
        _small(100, 6e-3), partial(rmu, read_layer=2, retain_weight=5.0), range(2)
    ),
    ("arithmetic", "paper", "GradDiff"): (
        _paper(10, 8e-6, 40, 1), partial(graddiff, retain_weight=15.0), None
    ),
    ("arithmetic", "paper", "RMU"): (
        _paper(500, 8e-6, 40, 10), partial(rmu, read_layer=11, coefficient=6.0), range(5, 11)
    ),
    ("language", "paper", "GradDiff"): (_paper(100, 6e-5, 8, 4), graddiff, None),
    ("language", "paper", "RMU"): (
        _paper(500, 3e-5, 8, 20),
        partial(rmu, read_layer=11, coefficient=6.5, retain_weight=1200.0),
        range(5, 11),
    ),
}  # fmt: skip
NPO_RETAIN = {"small": 5.0, "paper": 1.0}  # weight of the retain term; open-unlearning: 1


def unlearned(figure: Figure, method: str) -> Recipe:
    """Returns the base unlearned by a method; MaxEnt is that of the scale's experiment file."""
    if method == "MaxEnt":
        return figure.model("unlearn-only")
    training, loss, layers = TRAININGS[figure.setting, figure.scale, method]
    trains = None if layers is None else Trains(((r"mlp/down$", layers),))
    return figure.once(Unlearn(figure.model("base"), training, loss, trains))


def unlearned_by_npo(figure: Figure, rate: float) -> Recipe:
    """Returns the base unlearned by NPO at a rate, otherwise trained as by MaxEnt."""
    maxent: Any = unlearned(figure, "MaxEnt")
    loss = partial(npo, retain_weight=NPO_RETAIN[figure.scale])
    return replace(at_rate(maxent, rate), loss=loss, rng_name="unlearn")

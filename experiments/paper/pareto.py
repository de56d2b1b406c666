"""Retain against forget under relearning, for many settings of each method (paper §4).

    undo-jax run experiments/paper/pareto.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

The language setting reads the text that `make language` fetches.

A model is named METHOD SETTINGS. Settings of a method differ in numbers alone, so that they train
as one program. Grids of learning rates at the paper's scale are those of the official code. It has
no NPO, and RepNoise and SAM, which it adds to MaxEnt, without their runs: RepNoise's weights are
those that its list of models names, at MaxEnt's rate of 8e-5; SAM's ρ are its two, at four of
MaxEnt's rates; NPO has MaxEnt's rates, and one weight for retain. At small scale the grids were
chosen on seeds 0 to 2, to go from models that forget little to some that forget nearly all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, ClassVar

from scales import Figure, at_rate
from teachers import unlearned, unlearned_by_npo

from undo_jax.graph.recipe import Recipe
from undo_jax.methods.repnoise import repnoise
from undo_jax.methods.sam import sam
from undo_jax.runner.experiment import Experiment

Floats = tuple[float, ...]
LOW = (6e-6, 7e-6, 8e-6, 9e-6, 1e-5, 2e-5, 3e-5, 4e-5)
MIDDLE = (1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5)
HIGH = (6e-5, 7e-5, 8e-5, 9e-5, 1e-4, 2e-4, 3e-4, 4e-4)
RATES: dict[tuple[str, str], dict[str, Floats]] = {
    ("arithmetic", "small"): {
        "GradDiff": (2e-4, 3e-4, 4e-4, 5e-4, 8e-4, 1.2e-3),
        "MaxEnt": (2e-5, 3e-5, 5e-5, 1e-4, 3e-4, 1e-3),
        "RMU": (3e-4, 5e-4, 7e-4, 1e-3, 2e-3, 4e-3),
        "NPO": (3e-5, 5e-5, 7e-5, 1e-4, 2e-4, 1e-3),
        "SAM": (3e-5, 1e-4, 1e-3), "RepNoise": (3e-5, 1e-4, 1e-3),
    },
    ("language", "small"): {
        "GradDiff": (2e-4, 3e-4, 4e-4, 5e-4, 7e-4, 1e-3),
        "MaxEnt": (2e-5, 5e-5, 1e-4, 2e-4, 4e-4, 1e-3),
        "RMU": (3e-4, 5e-4, 7e-4, 1e-3, 2e-3, 6e-3),
        "NPO": (3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3),
        "SAM": (3e-5, 2e-4, 1e-3), "RepNoise": (3e-5, 2e-4, 1e-3),
    },
    ("arithmetic", "paper"): {
        "GradDiff": LOW, "MaxEnt": HIGH, "RMU": LOW, "NPO": HIGH,
        "SAM": (7e-5, 9e-5, 2e-4, 4e-4), "RepNoise": (8e-5,),
    },
    ("language", "paper"): {
        "GradDiff": MIDDLE, "MaxEnt": MIDDLE, "RMU": MIDDLE, "NPO": MIDDLE,
        "SAM": (1e-5, 3e-5, 5e-5, 8e-5), "RepNoise": (8e-5,),
    },
}  # fmt: skip
RHOS = (0.01, 0.05)  # of SAM
# of RepNoise: a of the ascent, β of the noise
WEIGHTS: dict[str, tuple[tuple[float, float], ...]] = {
    "small": ((1.0, 0.1), (4.0, 4.0)),
    "paper": (
        (0.1, 1e-3), (0.1, 1e-4), (0.5, 0.1), (0.5, 0.01),
        (1.0, 0.1), (1.0, 1.0), (2.0, 2.0), (4.0, 4.0),
    ),
}  # fmt: skip
SMALL = [(alpha, 0.1) for alpha in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
NOISES = {  # of UNDO, α and β: those of alpha.py where it has them
    ("arithmetic", "small"): SMALL,
    ("language", "small"): SMALL,
    ("arithmetic", "paper"): [(tenths / 10, 0.1) for tenths in range(1, 9)],
    ("language", "paper"): [*product((0.1, 0.3, 0.5, 0.7), (0.1, 0.05))],
}


@dataclass(frozen=True)
class Pareto(Figure):
    figure: ClassVar[str] = "pareto"

    def experiment(self) -> Experiment:
        references = {"base": self.model("base"), "oracle": self.model("oracle")}
        grid = {**dict(self.unlearned()), **dict(self.distilled())}
        return self.with_models({**references, **grid}, attacked=("oracle", *grid))

    def unlearned(self) -> Iterator[tuple[str, Recipe]]:
        """Yields the names and recipes of models of each method but UNDO."""
        rates = RATES[self.setting, self.scale]
        for method in ("GradDiff", "MaxEnt", "RMU"):
            for rate in rates[method]:
                yield f"{method} lr={rate:g}", at_rate(unlearned(self, method), rate)
        maxent: Any = unlearned(self, "MaxEnt")
        of_maxent = replace(maxent, rng_name="unlearn")
        for rate in rates["NPO"]:
            yield f"NPO lr={rate:g}", unlearned_by_npo(self, rate)
        for rate, rho in product(rates["SAM"], RHOS):
            loss = partial(sam, method=of_maxent.loss, rho=rho)
            yield f"SAM lr={rate:g} ρ={rho:g}", replace(at_rate(of_maxent, rate), loss=loss)
        for rate, (a, beta) in product(rates["RepNoise"], WEIGHTS[self.scale]):
            loss = partial(repnoise, method=of_maxent.loss, ascent_weight=a, noise_weight=beta)
            name = f"RepNoise lr={rate:g} a={a:g} β={beta:g}"
            yield name, replace(at_rate(of_maxent, rate), loss=loss)

    def distilled(self) -> Iterator[tuple[str, Recipe]]:
        """Yields the names and recipes of UNDO of the MaxEnt teacher, one per noise."""
        teacher = unlearned(self, "MaxEnt")
        for alpha, beta in NOISES[self.setting, self.scale]:
            name = f"UNDO α={alpha:g}" + (f" β={beta:g}" if beta != 0.1 else "")
            yield name, self.undo_at(teacher, alpha, beta)


# make paper 16: --setting arithmetic
# make paper 26: --setting language
experiment = Pareto()

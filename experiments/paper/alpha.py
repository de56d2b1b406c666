"""Robustness for compute: UNDO with noise from none to all of it (paper §4).

    undo-jax run experiments/paper/alpha.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

The language setting reads the text that `make language` fetches.

Students of every α at β = 0.1, and of other β at two α; and a fresh one, Unlearn-and-Distill.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from scales import Figure

from undo_jax.graph.recipe import Recipe
from undo_jax.runner.experiment import Experiment

SMALL = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS = {  # at β = 0.1
    ("arithmetic", "small"): SMALL,
    ("language", "small"): SMALL,
    ("arithmetic", "paper"): (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    ("language", "paper"): (0.1, 0.3, 0.5, 0.7),
}
ABLATED = {  # the α at which other β are tried
    ("arithmetic", "small"): (0.4, 0.8),
    ("language", "small"): (0.4, 0.8),
    ("arithmetic", "paper"): (0.3, 0.7),
    ("language", "paper"): (0.1, 0.3, 0.5, 0.7),
}
BETAS = {
    ("arithmetic", "small"): (0.0, 0.05, 0.5, 1.0),
    ("language", "small"): (0.0, 0.05, 0.5, 1.0),
    ("arithmetic", "paper"): (0.5, 1.0),
    ("language", "paper"): (0.01, 0.05),
}


@dataclass(frozen=True)
class Alpha(Figure):
    figure: ClassVar[str] = "alpha"

    def experiment(self) -> Experiment:
        teacher, key = self.model("unlearn-only"), (self.setting, self.scale)
        distilled: dict[str, Recipe] = {
            f"α={alpha:g}": self.undo_at(teacher, alpha) for alpha in ALPHAS[key]
        }
        for alpha, beta in product(ABLATED[key], BETAS[key]):
            distilled[f"α={alpha:g} β={beta:g}"] = self.undo_at(teacher, alpha, beta)
        distilled["Unlearn-and-Distill"] = self.unlearn_and_distill(teacher)
        references = {name: self.model(name) for name in ("base", "oracle", "unlearn-only")}
        return self.with_models(
            {**references, **distilled}, attacked=("unlearn-only", *distilled, "oracle")
        )


# make paper 13: --setting arithmetic
# make paper 23: --setting language
experiment = Alpha()

"""Robustness for compute: UNDO with noise from none to all of it (paper §4).

    undo-jax run experiments/paper/alpha.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

Students of every α at β = 0.1, and of other β at two α; and a fresh one, Unlearn-and-Distill.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from scales import Figure

from undo_jax.experiment import Experiment
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.recipe import Recipe
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.perturb import Perturb

ALPHAS = {
    "small": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "paper": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
}
BETAS = {"small": (0.0, 0.05, 0.5, 1.0), "paper": (0.01, 0.05)}
ABLATED = {"small": (0.4, 0.8), "paper": (0.3, 0.7)}  # the α at which other β are tried


@dataclass(frozen=True)
class Alpha(Figure):
    figure: ClassVar[str] = "alpha"

    def graph(self) -> Experiment:
        teacher, teaching = self.model("unlearn-only"), self.paper.distill
        students: dict[str, Recipe] = {
            f"α={alpha:g}": Perturb(teacher, alpha, partial(shrink_perturb, beta=0.1))
            for alpha in ALPHAS[self.scale]
        }
        for alpha in ABLATED[self.scale]:
            for beta in BETAS[self.scale]:
                noise = partial(shrink_perturb, beta=beta)
                students[f"α={alpha:g} β={beta:g}"] = Perturb(teacher, alpha, noise)
        students["Unlearn-and-Distill"] = Fresh(teacher.lm)
        distilled: dict[str, Recipe] = {
            name: Distill(
                teacher, student, teaching.training, teaching.tolerance, teaching.stop_early
            )
            for name, student in students.items()
        }
        known = {name: self.model(name) for name in ("base", "oracle", "unlearn-only")}
        return self.experiment(
            {**known, **distilled}, attacked=("unlearn-only", *distilled, "oracle")
        )


experiment = Alpha()

"""Distillation robustifies unlearning, whatever the method (paper §3).

    undo-jax run experiments/paper/methods.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

Three methods, each attacked as it is and after distillation into a fresh student.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from scales import Figure
from teachers import METHODS, unlearned

from undo_jax.experiment import Experiment
from undo_jax.recipe import Recipe
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh


@dataclass(frozen=True)
class Methods(Figure):
    figure: ClassVar[str] = "methods"

    def graph(self) -> Experiment:
        base, teaching = self.model("base"), self.paper.distill
        training, stop_early = teaching.training, teaching.stop_early
        if self.scale == "paper":  # Unlearn-and-Distill's own in the reference: no stop rule
            decay = 0.1 if self.setting == "language" else 0.0
            optimizer = replace(training.optimizer, weight_decay=decay)
            training = replace(training, steps=1000, eval_every=50, optimizer=optimizer)
            stop_early = False
        models: dict[str, Recipe] = {"base": base, "oracle": self.model("oracle")}
        attacked = ["oracle"]
        for method in METHODS:
            teacher = unlearned(self, method)
            models[method] = teacher
            models[f"{method}, distilled"] = Distill(
                teacher, Fresh(base.lm), training, teaching.tolerance, stop_early
            )
            attacked += [method, f"{method}, distilled"]
        return self.experiment(models, tuple(attacked))


experiment = Methods()

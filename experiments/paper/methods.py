"""Distillation robustifies unlearning, whatever the method (paper §3).

    undo-jax run experiments/paper/methods.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

The language setting reads the text that `make language` fetches.

Three methods, each attacked as it is and after distillation into a fresh student.
"""

from dataclasses import dataclass
from typing import ClassVar

from scales import Figure
from teachers import METHODS, unlearned

from undo_jax.graph.recipe import Recipe
from undo_jax.runner.experiment import Experiment


@dataclass(frozen=True)
class DistilledMethods(Figure):
    figure: ClassVar[str] = "methods"

    def experiment(self) -> Experiment:
        models: dict[str, Recipe] = {name: self.model(name) for name in ("base", "oracle")}
        attacked = ["oracle"]
        for method in METHODS:
            teacher = unlearned(self, method)
            models[method] = teacher
            models[f"{method}, distilled"] = self.unlearn_and_distill(teacher)
            attacked += [method, f"{method}, distilled"]
        return self.with_models(models, tuple(attacked))


# make paper 12: --setting arithmetic
# make paper 22: --setting language
experiment = DistilledMethods()

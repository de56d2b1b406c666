"""Oracle matching does not guarantee robust unlearning (paper §3).

    undo-jax run experiments/paper/oracle_matching.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

Two students are distilled from the oracle, which has seen no forget data, until their outputs are
the same as its own: one begins as the base, which has seen it, one at random. There is no noise and
no stop rule. Controls: a student with the oracle's own first parameters, which is the official
code's random one, and the base distilled into a random student.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from scales import Figure

from undo_jax.experiment import Experiment
from undo_jax.recipe import Recipe
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.train import Training


@dataclass(frozen=True)
class OracleMatching(Figure):
    figure: ClassVar[str] = "oracle_matching"

    def graph(self) -> Experiment:
        base, oracle = self.model("base"), self.model("oracle")
        first = {
            "Student (Reference)": (oracle, base),
            "Student (Random)": (oracle, Fresh(base.lm)),
            "Student (oracle's init)": (oracle, Fresh(base.lm, draw=oracle.draw)),
            "base, distilled": (base, Fresh(base.lm)),
        }
        students: dict[str, Recipe] = {
            name: Distill(teacher, student, self.training, stop_early=False)
            for name, (teacher, student) in first.items()
        }
        return self.experiment(
            {"base": base, "oracle": oracle, **students}, attacked=("oracle", *students)
        )

    @property
    def training(self) -> Training:
        """As in UNDO; in language the paper's scale has weight decay, and 1000 steps."""
        training = self.paper.distill.training
        if (self.setting, self.scale) != ("language", "paper"):
            return training
        optimizer = replace(training.optimizer, weight_decay=0.1)
        return replace(training, steps=1000, optimizer=optimizer)


experiment = OracleMatching()

"""Oracle matching does not guarantee robust unlearning (paper §3).

    undo-jax run experiments/paper/oracle_matching.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

The language setting reads the text that `make language` fetches.

Two students are distilled from the oracle, which has seen no forget data, until their outputs are
the same as its own: one begins as the base, which has seen it, one at random. There is no noise and
no stop rule. Controls: a student with the oracle's own first parameters, which is the official
code's random one, and the base distilled into a random student. --steps distils for longer, and is
a row of its own in the figure.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from scales import Figure

from undo_jax.graph.recipe import Recipe
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.runner.experiment import Experiment
from undo_jax.training.train_step import Training


@dataclass(frozen=True)
class OracleMatching(Figure):
    figure: ClassVar[str] = "oracle_matching"
    steps: int | None = None  # of each student; None: of the setting and scale

    @property
    def variant(self) -> str:
        return super().variant + ("" if self.steps is None else f"_steps{self.steps}")

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds of the setting; in small arithmetic ten, since five left claims open."""
        if (self.setting, self.scale) == ("arithmetic", "small"):
            return tuple(range(200, 210))
        return super().reported

    def experiment(self) -> Experiment:
        base, oracle = self.model("base"), self.model("oracle")
        first = {
            "Student (Reference)": (oracle, base),
            "Student (Random)": (oracle, Fresh(base.lm)),
            "Student (oracle's init)": (oracle, Fresh(base.lm, rng_name=oracle.rng_name)),
        }
        students: dict[str, Recipe] = {
            name: Distill(teacher, student, self.training, stop_early=False)
            for name, (teacher, student) in first.items()
        }
        students["base, distilled"] = Distill(base, Fresh(base.lm), self.control, stop_early=False)
        return self.with_models(
            {"base": base, "oracle": oracle, **students}, attacked=("oracle", *students)
        )

    @property
    def training(self) -> Training:
        """The training of the students: of UNDO; at the paper's scale, of Unlearn-and-Distill."""
        if self.scale == "small":
            training = self.paper.distill.training
        else:
            training = self.unlearn_and_distill(self.model("oracle")).training
        return training if self.steps is None else replace(training, steps=self.steps)

    @property
    def control(self) -> Training:
        """The training of the base's student; in the paper's arithmetic 2000 steps at 1e-4."""
        if (self.setting, self.scale) != ("arithmetic", "paper"):
            return self.training
        optimizer = replace(self.training.optimizer, learning_rate=1e-4, decay="constant")
        return replace(self.training, steps=self.steps or 2000, optimizer=optimizer)


# make paper 11: --setting arithmetic
# make paper 21: --setting language
experiment = OracleMatching()

"""Distilling on after the student has recovered: does robustness fall, and why?

    undo-jax run experiments/paper/beyond.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

The language setting reads the text that `make language` fetches.

A noised and a fresh student are distilled for about as long as the stop rule takes, and for two
and four times as long. Controls: a filter that gives uniform targets on forget rows
(`FilteredDistill`), a teacher that was unlearned four times as long, and an oracle that was trained
four times as long.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scales import Figure, trained

from undo_jax.graph.recipe import Recipe
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.filtered import FilteredDistill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.perturb import Perturb
from undo_jax.runner.experiment import Experiment

ALPHA = 0.8
STEPS = {  # of 1×: about what students of the stop rule take
    ("arithmetic", "small"): 700,
    ("language", "small"): 400,
    ("arithmetic", "paper"): 1000,
    ("language", "paper"): 3250,
}
TIMES = (1, 2, 4)


@dataclass(frozen=True)
class Beyond(Figure):
    figure: ClassVar[str] = "beyond"

    def experiment(self) -> Experiment:
        base, oracle, teacher = (self.model(n) for n in ("base", "oracle", "unlearn-only"))
        longer = {"oracle, 4×": _four_times(oracle), "unlearn-only, 4×": _four_times(teacher)}
        models: dict[str, Recipe] = {
            "base": base, "oracle": oracle, "unlearn-only": teacher, **longer
        }  # fmt: skip
        longer_teacher, noise, fresh = (
            longer["unlearn-only, 4×"],
            self.paper.noise.noise,
            Fresh(teacher.lm),
        )
        for name, student, longer_student in (
            ("UNDO", Perturb(teacher, ALPHA, noise), Perturb(longer_teacher, ALPHA, noise)),
            ("Unlearn-and-Distill", fresh, fresh),
        ):
            for times in TIMES:
                models[f"{name}, {times}×"] = self._distilled(Distill, teacher, student, times)
            for times in (1, 4):
                filtered = self._distilled(FilteredDistill, teacher, student, times)
                models[f"{name}, filtered, {times}×"] = filtered
                distilled = self._distilled(Distill, longer_teacher, longer_student, times)
                models[f"{name}, of the longer unlearned, {times}×"] = distilled
        return self.with_models(models, tuple(name for name in models if name != "base"))

    def _distilled(
        self, kind: type[Distill], teacher: Recipe, student: Recipe, times: int
    ) -> Distill:
        """Returns a distillation without a stop rule; a filtered one has half its rows per side."""
        training = replace(
            self.paper.distill.training, steps=times * STEPS[self.setting, self.scale]
        )
        if kind is FilteredDistill:
            training = replace(training, batch_size=training.batch_size // 2)
        return kind(teacher, student, training, stop_early=False)


def _four_times(recipe: Any) -> Recipe:
    """Returns the recipe, trained four times as long."""
    return trained(recipe, steps=4 * recipe.training.steps)


# make paper 14: --setting arithmetic
# make paper 24: --setting language
experiment = Beyond()

"""What readers asked for beside UNDO: other damage, other students, other targets.

    undo-jax run experiments/paper/baselines.py --setting arithmetic --workdir runs/paper
    undo-jax figures runs/paper

The language setting reads the text that `make language` fetches.

Damage: UNDO's noise in the MLPs or in the upper half of the layers alone, each beside a random
choice of as many weights; and pruning. Students: a copy of the teacher without noise, a noised one
that is not distilled, and a fresh one of half the width. Targets: states beside logits, the few
likeliest tokens of each position alone, as one would store them, and uniform targets on documents
that a classifier takes for forget data. A name ends in the share of the weights that are damaged.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from beyond import STEPS
from scales import Figure, at_width, trained

from undo_jax.graph.recipe import Recipe
from undo_jax.losses import activation_distillation, top_k_distillation
from undo_jax.noises.prune import prune
from undo_jax.noises.random_mask import random_mask
from undo_jax.noises.targeted import targeted
from undo_jax.recipes.classifier import Classifier
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.filtered import ClassifiedDistill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.perturb import Perturb
from undo_jax.runner.experiment import Experiment
from undo_jax.training.optim import Trains, share
from undo_jax.types import LM, Loss, shapes

ALPHA = 0.6  # of all noises, and the share that is pruned
TOP = {("arithmetic", "small"): 4}  # tokens kept of 64; of all larger vocabularies:
TOP_OF_MANY = 32


@dataclass(frozen=True)
class Baselines(Figure):
    figure: ClassVar[str] = "baselines"

    def experiment(self) -> Experiment:
        teacher, noise = self.model("unlearn-only"), self.paper.noise.noise
        noised = Perturb(teacher, ALPHA, noise)
        models: dict[str, Recipe] = {
            name: self.model(name) for name in ("base", "oracle", "unlearn-only")
        }
        models |= {
            "noise alone": noised,
            "copy, distilled": self._copied(teacher),
            "UNDO": self.undo(teacher, noised),
            "UNDO, with states": replace(self.undo(teacher, noised), loss=activation_distillation),
            "UNDO, top-k logits": replace(self.undo(teacher, noised), loss=self._top_k()),
            "UNDO, classifier's filter": self._filtered(teacher, noised),
            "Unlearn-and-Distill": self.unlearn_and_distill(teacher),
            "half-size student": self._halved(teacher),
            f"pruning ({ALPHA:.0%})".replace("%", " %"): self.undo(
                teacher, Perturb(teacher, ALPHA, prune)
            ),
        }
        for name, parts in _parts(teacher.lm).items():
            part = share(parts, shapes(teacher.lm))
            percent = f"({100 * part:.0f} %)"
            for where, damage in (
                (f"noise in {name} {percent}", partial(targeted, parts=parts)),
                (f"random, as {name} {percent}", partial(random_mask, share=round(part, 4))),
            ):
                models[where] = self.undo(teacher, Perturb(teacher, ALPHA, damage))
        return self.with_models(models, tuple(name for name in models if name != "base"))

    def _top_k(self) -> Loss:
        return partial(top_k_distillation, k=TOP.get((self.setting, self.scale), TOP_OF_MANY))

    def _halved(self, teacher: Recipe) -> Distill:
        """Returns a half-width student; with twice the steps, since a pilot needed 1600."""
        lm: Any = teacher.lm
        distilled = self.undo(teacher, Fresh(at_width(lm, lm.width // 2)))
        return trained(distilled, steps=2 * distilled.training.steps)

    def _filtered(self, teacher: Recipe, student: Recipe) -> Distill:
        """Returns a distillation with uniform targets where a classifier finds forget data."""
        base, distill = self.model("base"), self.paper.distill
        classifier: Any = self.once(Classifier(base, layer=base.lm.layers // 2))
        return ClassifiedDistill(
            teacher,
            student,
            distill.training,
            distill.tolerance,
            distill.stop_early,
            classifier=classifier,
        )

    def _copied(self, teacher: Recipe) -> Distill:
        """Returns a distilled copy of the teacher; the stop rule would end it at step 0."""
        distilled = self.undo(teacher, Perturb(teacher, 0.0, self.paper.noise.noise))
        return trained(replace(distilled, stop_early=False), steps=STEPS[self.setting, self.scale])


def _parts(lm: LM) -> dict[str, Trains]:
    """Returns the parameters that noise is targeted at, by the name of the part."""
    upper = range(lm.layers // 2, lm.layers)
    return {"MLPs": Trains(((r"/mlp/", None),)), "upper layers": Trains(((r"^layers/", upper),))}


# make paper 15: --setting arithmetic
# make paper 25: --setting language
experiment = Baselines()

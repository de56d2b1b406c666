"""An experiment of the paper's kind: an UNDO student of half noise beside its teacher."""

from dataclasses import dataclass
from typing import ClassVar

from scales import Figure

from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.recipes.perturb import Perturb
from undo_jax.runner.experiment import Experiment


@dataclass(frozen=True)
class HalfNoise(Figure):
    figure: ClassVar[str] = "half_noise"

    def experiment(self) -> Experiment:
        models = {name: self.model(name) for name in ("base", "oracle", "unlearn-only")}
        teacher = models["unlearn-only"]
        models["half noise"] = self.undo(teacher, Perturb(teacher, 0.5, shrink_perturb))
        return self.with_models(models, attacked=("unlearn-only", "half noise", "oracle"))


# make paper 91: --setting arithmetic
# make paper 92: --setting language
experiment = HalfNoise()

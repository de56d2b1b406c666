"""Four unlearning methods side by side, each alone and distilled into a fresh student (paper §3).

On the quickstart's arithmetic and model: minutes on two CPU cores. Models that can train together
do: one program distills the students of all four teachers and all seeds. Rates and weights are
hand-picked to forget without losing what is retained, and are no ranking of the methods.
"""

from dataclasses import dataclass
from functools import partial

from undo_jax.attacks.forget import forget
from undo_jax.attacks.mixed import mixed
from undo_jax.data.arithmetic import Grammar
from undo_jax.graph.recipe import Recipe
from undo_jax.methods.graddiff import graddiff
from undo_jax.methods.maxent import maxent
from undo_jax.methods.npo import npo
from undo_jax.methods.rmu import rmu
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.optim import AdamW, Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM


def short(steps: int, learning_rate: float) -> Training:
    """Returns the training of an unlearning method."""
    optimizer = AdamW(learning_rate, warmup=10, b2=0.98)
    return Training(steps, batch_size=16, optimizer=optimizer, eval_every=20)


@dataclass(frozen=True)
class Methods:
    """The settings, each of which is a flag, e.g. --seeds 0 1 --distill.steps 500."""

    setting: Arithmetic
    pretrain: Training
    distill: Training
    relearn: Training
    learning_rates: tuple[float, ...]  # of the attacks, times the optimizer's own
    name: str = "methods"  # of the experiment; names files
    model: LM = preset("tiny")
    seeds: tuple[int, ...] = (0, 1, 2)  # each makes a model of every kind
    mesh: MeshShape = MeshShape(sweep=-1, data=1)
    saving: CheckpointPolicy = CheckpointPolicy()

    def experiment(self) -> Experiment:
        lm = self.model
        base = Pretrain(lm, self.pretrain)
        down = Trains(((r"mlp/down$", (0, 1)),))  # RMU trains the layers below the one it reads
        unlearned = {
            "GradDiff": Unlearn(base, short(40, 5e-4), partial(graddiff, retain_weight=5.0)),
            "MaxEnt": Unlearn(base, short(100, 1e-3), maxent),
            "RMU": Unlearn(
                base, short(200, 2e-3), partial(rmu, read_layer=2, retain_weight=5.0), down
            ),
            "NPO": Unlearn(base, short(100, 1e-3), partial(npo, retain_weight=5.0)),
        }
        models: dict[str, Recipe] = {"oracle": Pretrain(lm, self.pretrain, stream="oracle")}
        for name, model in unlearned.items():
            models[name] = model
            models[f"{name}, distilled"] = Distill(model, Fresh(lm), self.distill)
        return Experiment(
            name=self.name,
            setting=self.setting,
            models=models,
            attacks=tuple(attack(self.relearn, self.learning_rates) for attack in (forget, mixed)),
            oracle="oracle",
            seeds=self.seeds,
            mesh=self.mesh,
            saving=self.saving,
        )


experiment = Methods(
    setting=Arithmetic(
        grammar=Grammar(largest_term=12, largest_factor=9, spaced=False, held_out=0.0),
        forms=("equation",),
        problems=60_000,
        row_length=48,
        examine="train_facts",
        questions=None,
        validation_rows=8,
        segments=True,  # a sequence of NPO is a problem; a row holds several
    ),
    pretrain=Training(1000, 16, AdamW(5e-3, warmup=50, decay="cosine", b2=0.98), eval_every=250),
    distill=Training(1000, 16, AdamW(6e-3, warmup=20, decay="cosine", b2=0.98), eval_every=25),
    relearn=Training(60, 16, AdamW(warmup=10, b2=0.98), eval_every=5),
    learning_rates=(1e-3, 2e-3, 3e-3, 6e-3),
)

"""From a model you have to a robustly unlearned one: no pretraining, no oracle.

    undo-jax run experiments/quickstart.py --workdir runs/quickstart --seeds 0 --stage pretrain
    undo-jax run experiments/from_base.py --base runs/quickstart/pretrain-base-seed0-*

The base is a finished artifact, bare Orbax parameters, or a Hugging Face folder, of the model and
the setting below: `preset("tiny")` and arithmetic. For another model, docs/YOUR_MODEL.md has a
file. From the quickstart's base it takes a minute or two on two CPU cores.
"""

from dataclasses import dataclass

from undo_jax.attacks.forget import forget
from undo_jax.attacks.mixed import mixed
from undo_jax.data.arithmetic import Grammar
from undo_jax.graph.recipe import Recipe
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.imported import Import
from undo_jax.recipes.keep_layers import KeepLayers
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.setting import Setting
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training
from undo_jax.types import LM


@dataclass(frozen=True)
class FromBase:
    """The settings, each of which is a flag, e.g. --base gemma-2-2b --alphas 0.5."""

    setting: Setting
    unlearn: Training
    distill: Training
    relearn: Training
    learning_rates: tuple[float, ...]  # of the attacks, times the optimizer's own
    base: str = "base"  # the folder of its weights
    alphas: tuple[float, ...] = (0.6,)  # of the noise in students; there is also a fresh student
    every: int = 1  # noised students have every n-th layer of the unlearned model
    student: LM | None = None  # the fresh student's LM, of any size; None: the base's
    name: str = "from_base"  # of the experiment; names files
    model: LM = preset("tiny")
    seeds: tuple[int, ...] = (0, 1)  # each makes a model of every kind
    mesh: MeshShape = MeshShape(sweep=-1, data=1)
    saving: CheckpointPolicy = CheckpointPolicy()

    def experiment(self) -> Experiment:
        base = Import(self.model, self.base)
        unlearned = Unlearn(base, self.unlearn, maxent)
        teacher_layers = unlearned if self.every == 1 else KeepLayers(unlearned, self.every)
        students: dict[str, Recipe] = {
            f"UNDO α={alpha:g}": Perturb(teacher_layers, alpha) for alpha in self.alphas
        }
        students["Unlearn-and-Distill"] = Fresh(self.student or self.model)
        distilled = {
            name: Distill(unlearned, student, self.distill) for name, student in students.items()
        }
        return Experiment(
            name=self.name,
            setting=self.setting,
            models={"base": base, "unlearn-only": unlearned, **distilled},
            attacks=tuple(attack(self.relearn, self.learning_rates) for attack in (forget, mixed)),
            attacked=("unlearn-only", *distilled),
            seeds=self.seeds,
            mesh=self.mesh,
            saving=self.saving,
        )


experiment = FromBase(
    setting=Arithmetic(
        grammar=Grammar(largest_term=12, largest_factor=9, spaced=False, held_out=0.0),
        forms=("equation",),
        problems=60_000,
        row_length=48,
        examine="train_facts",
        questions=None,
        validation_rows=8,
    ),
    unlearn=Training(100, 16, AdamW(1e-3, warmup=10, b2=0.98), eval_every=25),
    distill=Training(1000, 16, AdamW(6e-3, warmup=20, decay="cosine", b2=0.98), eval_every=25),
    relearn=Training(60, 16, AdamW(warmup=10, b2=0.98), eval_every=5),
    learning_rates=(1e-3, 2e-3, 3e-3, 6e-3),
)

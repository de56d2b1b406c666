"""A model family, a setting and a noise that are not the package's, each a file beside this one."""

from bag import Bag
from forgetful import forgetful
from letters import Letters

from undo_jax.attacks.forget import forget
from undo_jax.methods.maxent import maxent
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

lm, training = Bag(vocabulary=8, width=16), Training(60, 8, AdamW(0.03), eval_every=20)
base = Pretrain(lm, training)
unlearned = Unlearn(base, training, maxent)
student = Distill(unlearned, Perturb(unlearned, 0.5, forgetful), training, tolerance=0.1)
experiment = Experiment(
    name="letters",
    setting=Letters(),
    models={
        "base": base,
        "oracle": Pretrain(lm, training, "oracle"),
        "unlearned": unlearned,
        "student": student,
    },
    attacks=(forget(Training(10, 8, AdamW(0.01), eval_every=5), (1.0,)),),
    oracle="oracle",
    mesh=MeshShape(sweep=-1, data=1),
)

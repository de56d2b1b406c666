"""The whole method on two CPU cores: a 47k-parameter Gemma-2 that knows the four operations.

Operands are small and every fact is seen in training: what is measured is recall, as in the
reference. The point is the shape of the relearning curves. `make quickstart` also keeps snapshots
of the attacked models for the demo (`--relearn.keep-at`).
"""

from undo_jax.data.arithmetic import Grammar
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.paper import Distillation, Paper, Pretraining, Relearning, Students, Unlearning
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

experiment = Paper(
    name="quickstart",
    setting=Arithmetic(
        grammar=Grammar(largest_term=12, largest_factor=9, spaced=False, held_out=0.0),
        forms=("equation",),
        problems=60_000,
        row_length=48,
        examine="train_facts",
        questions=None,
        validation_rows=8,
    ),
    model=preset("tiny"),
    pretrain=Pretraining(
        Training(
            steps=1000,
            batch_size=16,
            optimizer=AdamW(5e-3, warmup=50, decay="cosine", b2=0.98),
            eval_every=250,
        )
    ),
    unlearn=Unlearning(
        Training(
            steps=100, batch_size=16, optimizer=AdamW(1e-3, warmup=10, b2=0.98), eval_every=25
        ),
        method=maxent,
    ),
    noise=Students(alphas=(0.4, 0.6, 0.8)),
    distill=Distillation(
        Training(
            steps=1000,
            batch_size=16,
            optimizer=AdamW(6e-3, warmup=20, decay="cosine", b2=0.98),
            eval_every=25,
        )
    ),
    relearn=Relearning(
        Training(steps=60, batch_size=16, optimizer=AdamW(warmup=10, b2=0.98), eval_every=5),
        learning_rates=(1e-3, 2e-3, 3e-3, 6e-3),
        attacks=("forget", "mixed"),
    ),
    seeds=(0, 1, 2),
    mesh=MeshShape(sweep=-1, data=1),  # devices train different models; a CPU core is a device
)

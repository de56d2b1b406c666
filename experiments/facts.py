"""Forgetting a concept on two CPU cores: all that is known of four invented families of eight.

Nothing is downloaded: people, families and facts are made up by `undo_jax/data/fiction.py`. Each
fact is stated in several wordings, and a question about it has four choices. The oracle, which
never read about the forgotten families, answers one in four of them right.
"""

from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.paper import Distillation, Paper, Pretraining, Relearning, Students, Unlearning
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.facts import Facts
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

experiment = Paper(
    name="facts",
    setting=Facts(),
    model=preset("tiny", vocabulary=120),
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
            steps=300, batch_size=16, optimizer=AdamW(3e-3, warmup=10, b2=0.98), eval_every=50
        ),
        method=maxent,
    ),
    noise=Students(alphas=(0.4, 0.6, 0.8)),
    distill=Distillation(
        Training(
            steps=1500,
            batch_size=16,
            optimizer=AdamW(6e-3, warmup=20, decay="cosine", b2=0.98),
            eval_every=25,
        )
    ),
    relearn=Relearning(
        Training(steps=60, batch_size=16, optimizer=AdamW(warmup=10, b2=0.98), eval_every=5),
        learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
        attacks=("forget", "mixed"),
    ),
    seeds=(1, 2, 3),  # 0 chose the settings
    mesh=MeshShape(sweep=-1, data=1),
)

"""The paper's arithmetic setting: retain + and −, forget × and ÷ (values of the official code).

It runs without gated downloads: one token is one character instead of Gemma's 256k vocabulary, and
there is no English unless `Arithmetic(text=..., tokenizer=...)` is given, which mixes it in at the
reference's shares. Scores are on held-out facts. docs/LIMITS.md lists all deviations.
"""

from functools import partial

from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.paper import Distillation, Paper, Pretraining, Relearning, Students, Unlearning
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

experiment = Paper(
    name="arithmetic",
    setting=Arithmetic(),
    model=preset("0.3B", vocabulary=128),
    pretrain=Pretraining(
        Training(
            steps=1000,
            batch_size=360,
            optimizer=AdamW(4e-4, warmup=50),
            eval_every=100,
        )
    ),
    unlearn=Unlearning(
        Training(steps=10, batch_size=40, optimizer=AdamW(9e-5), eval_every=1),
        method=partial(maxent, retain_weight=1.0),
    ),
    noise=Students(alphas=(0.2, 0.4, 0.6, 0.8), noise=partial(shrink_perturb, beta=0.1)),
    distill=Distillation(
        Training(
            steps=1000,
            batch_size=360,
            optimizer=AdamW(7e-4, warmup=50, decay="cosine", end=0.1),
            eval_every=20,
        )
    ),
    relearn=Relearning(
        Training(
            steps=500,
            batch_size=16,  # reference: 15, which an even number of devices cannot divide
            optimizer=AdamW(warmup=1),
            eval_every=5,
        ),
        learning_rates=(1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6),
        attacks=("forget", "mixed"),
    ),
    seeds=(111, 222, 333, 444, 555),
)

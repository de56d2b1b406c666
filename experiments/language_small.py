"""The language setting on two CPU cores: real English and Korean text, 328,512 parameters.

`make language` fetches the help pages of LibreOffice in both languages, trains a tokenizer on them,
packs them and runs this.
"""

from undo_jax.data.corpus import Corpus
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.paper import Distillation, Paper, Pretraining, Relearning, Students, Unlearning
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.language import Language
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

DATA = "data/language_small"
PARTS = 8  # of a batch, one after another: what a part needs stays in a core's cache

experiment = Paper(
    name="language_small",
    setting=Language(
        retain=Corpus(f"{DATA}/english"),
        forget=Corpus(f"{DATA}/korean"),
        tokenizer=load_tokenizer(f"{DATA}/tokenizer.model"),
        row_length=128,
        validation_rows=64,
        rows_at_once=8,
    ),
    model=preset(
        "2B",
        layers=3,
        width=64,
        feed_forward=256,
        heads=4,
        kv_heads=4,
        head_width=16,
        attention_scale=16**-0.5,
        vocabulary=2048,
        init_stddev=64**-0.5,
        unroll=3,
        remat="none",
    ),
    pretrain=Pretraining(
        Training(
            steps=800,
            batch_size=16,
            optimizer=AdamW(4e-3, warmup=50, decay="cosine", b2=0.98),
            eval_every=200,
            accumulation=PARTS,
        )
    ),
    unlearn=Unlearning(
        Training(steps=60, batch_size=16, optimizer=AdamW(1e-3, warmup=10, b2=0.98), eval_every=20),
        method=maxent,
    ),
    noise=Students(alphas=(0.4, 0.8)),
    distill=Distillation(
        Training(
            steps=800,
            batch_size=16,
            optimizer=AdamW(4e-3, warmup=20, decay="cosine", b2=0.98),
            eval_every=25,
            accumulation=PARTS,
        )
    ),
    relearn=Relearning(
        Training(
            steps=60,
            batch_size=16,
            optimizer=AdamW(warmup=10, b2=0.98),
            eval_every=5,
            accumulation=PARTS,
        ),
        learning_rates=(3e-3, 1e-2, 3e-2),
        attacks=("forget", "mixed"),
    ),
    seeds=(0, 1),
    mesh=MeshShape(sweep=-1, data=1),
)

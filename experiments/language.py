"""The paper's language setting: retain English, forget Korean (values of the official code).

It needs two packed corpora and the tokenizer they were packed with, a million documents or so each:

    undo-jax data train-tokenizer --source parquet --pattern 'english/*.parquet' \
        'korean/*.parquet' --vocab-size 32000 --out data/language/tokenizer.model
    undo-jax data pack --source parquet --pattern 'english/*.parquet' --validation-share 0.001 \
        --tokenizer data/language/tokenizer.model --out data/language/english
    undo-jax data pack --source parquet --pattern 'korean/*.parquet' --validation-share 0.001 \
        --tokenizer data/language/tokenizer.model --out data/language/korean

The reference has FineWeb-Edu and FineWeb-2 (kor_Hang), 1e9 tokens each, in Gemma's own 256k
vocabulary; that tokenizer.model works here too, with --model.vocabulary 256000. The oracle trains
for as many steps as the base (reference: one epoch of half the data), and an unlearning batch has 8
rows (reference: 4), which more devices can divide. docs/LIMITS.md lists all deviations.
"""

from functools import partial

from undo_jax.data.corpus import Corpus
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.paper import Distillation, Paper, Pretraining, Relearning, Students, Unlearning
from undo_jax.settings.language import Language
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

DATA = "data/language"

experiment = Paper(
    name="language",
    setting=Language(
        retain=Corpus(f"{DATA}/english"),
        forget=Corpus(f"{DATA}/korean"),
        tokenizer=load_tokenizer(f"{DATA}/tokenizer.model"),
        row_length=2048,
    ),
    model=preset("0.1B", vocabulary=32_000),  # the tokenizer's; a multiple of 128 is fast
    pretrain=Pretraining(
        Training(
            steps=1950,  # reference: one epoch, about 1.6e9 packed tokens
            batch_size=400,
            optimizer=AdamW(4e-4, warmup=50, decay="cosine", end=0.1, weight_decay=0.1),
            eval_every=50,
        )
    ),
    unlearn=Unlearning(
        Training(steps=100, batch_size=8, optimizer=AdamW(3e-5), eval_every=4),
        method=partial(maxent, retain_weight=1.0),
    ),
    noise=Students(alphas=(0.2, 0.4, 0.6, 0.8), noise=partial(shrink_perturb, beta=0.1)),
    distill=Distillation(
        Training(
            steps=3250,  # reference: one epoch at most
            batch_size=240,
            optimizer=AdamW(9e-4, warmup=50, decay="cosine", end=7 / 9),
            eval_every=50,
        )
    ),
    relearn=Relearning(
        Training(steps=500, batch_size=8, optimizer=AdamW(warmup=1), eval_every=5),
        learning_rates=(1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6),
        attacks=("forget", "mixed"),
    ),
    seeds=(42,),
)

"""What an experiment gets that does not say it: the reference's own numbers, where it has any."""

import dataclasses
import inspect

import pytest

from undo_jax.attack import Attack
from undo_jax.attacks.lora import lora
from undo_jax.attacks.soft_prompt import soft_prompt
from undo_jax.data.fiction import Fiction
from undo_jax.data.muse import MuseFiles
from undo_jax.data.pairs import Pairs
from undo_jax.data.tofu import TofuFiles
from undo_jax.evals.quiz import Quiz
from undo_jax.losses import (
    distillation,
    jsd_distillation,
    language_modelling,
    reverse_distillation,
)
from undo_jax.methods.maxent import maxent
from undo_jax.models.architecture import Adapters, Architecture
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.paper import Distillation, Paper, Pretraining, Relearning, Students, Unlearning
from undo_jax.recipes.attacked import TrainedAttack
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.settings.arithmetic import VALIDATION_SEED, Arithmetic
from undo_jax.settings.choices import Choices, Part
from undo_jax.settings.facts import Facts
from undo_jax.settings.language import Language
from undo_jax.settings.muse import Muse
from undo_jax.settings.tofu import Tofu
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.optim import SGD, Adafactor, Lion
from undo_jax.training.train_step import Training

SAME = Attack.__dataclass_fields__["adapt"].default
SCHEDULED = {"learning_rate": 1.0, "warmup": 0, "decay": "constant", "end": 0.1}
DEFAULTS = {
    Arithmetic: {
        "forms": ("equation", "word_problem"), "problems": 1_000_000, "row_length": 256,
        "examine": "held_out_facts", "questions": 100, "validation_rows": 16, "tokenizer": None,
        "text": None, "text_share": 0.75, "data_seed": 99, "answers_only": False, "controls": False,
        "segments": False,
    },
    Language: {
        "names": ("English", "Korean"), "retain_share": 0.5, "validation_rows": 240,
        "rows_at_once": 8, "row_length": 2048, "segments": False,
    },
    Fiction: {"families": 8, "members": 12, "forgotten": 4, "seed": 0},
    Facts: {
        "documents": 20_000, "row_length": 64, "validation_rows": 8, "data_seed": 99,
        "answers_only": False, "segments": False,
    },
    Quiz: {
        "style": "letters", "subject": None, "description": None, "examples": None, "shots": 0,
        "share": 1.0, "apart": (), "score": "acc", "longest": 2048, "opens": True,
    },
    Pairs: {
        "template": "Question: {question}\nAnswer: {answer}", "question": "question",
        "answer": "answer", "validation_share": 0.05, "marked": False,
    },
    Part: {"share": 1.0},
    TofuFiles: {"split": "forget10", "holdout": True},
    Tofu: {
        "template": "Question: {question}\nAnswer: {answer}", "row_length": 256, "new_tokens": 200,
        "rows_at_once": 8, "segments": False,
    },
    MuseFiles: {"retain": ("retain1", "retain2"), "membership": "privleak", "shots": 10},
    Muse: {
        "row_length": 2048, "longest": 2048, "answer_tokens": 32, "text_tokens": 128,
        "rows_at_once": 8, "segments": False,
    },
    Choices: {
        "retain_quizzes": (), "general": (), "row_length": 256, "retain_share": 0.5,
        "validation_rows": 64,
        "rows_at_once": 8, "segments": False, "general_row_length": None,
    },
    Training: {"accumulation": 1},
    Pretraining: {"base": None},
    Unlearning: {"method": maxent, "trains": None},
    Students: {"fresh_student": True, "student": None},
    Distillation: {"tolerance": 0.05, "stop_early": True, "filtered": False, "loss": distillation},
    Relearning: {"attacks": ("forget",), "keep_at": ()},
    Paper: {"seeds": (0,), "together": 64, "sinks": (), "scores": ()},
    Pretrain: {"stream": "pretrain", "loss": language_modelling, "rng_name": "pretrain",
               "seed": None},
    Unlearn: {"loss": maxent, "trains": None, "rng_name": "unlearn", "seed": None},
    Distill: {"tolerance": 0.05, "stop_early": True, "stream": "pretrain", "loss": distillation,
              "rng_name": "distill", "seed": None},
    Attack: {"learning_rates": (1.0,), "stream": "forget", "loss": language_modelling,
             "prepare": None, "trains": None, "adapt": SAME, "metric": None, "keep_at": (),
             "control": False, "rows": None, "opening": None, "extra_models": (),
             "mix": None, "min_retain": 0.9},
    TrainedAttack: {"rng_name": "relearn", "seed": None},
    Experiment: {"attacks": (), "attacked": None, "oracle": None, "seeds": (0,), "together": 64,
                 "sinks": (), "scores": ()},
    CheckpointPolicy: {"every": 10, "minutes": 5.0, "keep": 2},
    Architecture: {
        "attention_softcap": None, "final_softcap": None, "document_start": None,
        "rope_theta": 10_000.0, "norm_epsilon": 1e-6, "init_stddev": 0.02, "family": None,
        "dtype": "auto", "remat": "dots", "unroll": 1, "gradient_sum": "reduce_scatter",
        "sliding": (True, False),
        "local_theta": None, "rope_scaling": None, "positions": 8192, "norm_offset": 1.0,
        "after_norms": True, "qk_norm": False, "qkv_bias": False, "output_bias": False,
        "activation": "gelu", "scaled_embedding": True, "own_head": False, "used": None,
        "adapters": None,
    },
    Adapters: {"targets": ("query", "key", "value", "output", "gate", "up", "down"),
               "dropout": 0.0},
    SGD: {**SCHEDULED, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "clip": 1.0},
    Lion: {**SCHEDULED, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip": 1.0},
    Adafactor: {**SCHEDULED, "decay_rate": 0.8, "weight_decay": 0.0, "clip": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(DEFAULTS), ids=lambda kind: kind.__name__)
def test_defaults(kind):
    values = {f.name: f.default for f in dataclasses.fields(kind)}
    plain = (int, float, str, bool, tuple, type(None))
    found = {n: v for n, v in values.items() if isinstance(v, plain) or inspect.isfunction(v)}
    assert found == DEFAULTS[kind]


def test_lora_is_that_of_the_red_team_of_tar():
    """Its rank, α and dropout (arXiv 2408.00761)."""
    given = inspect.signature(lora).parameters
    assert [given[n].default for n in ("rank", "alpha", "dropout")] == [16, 32.0, 0.05]


def test_a_soft_prompt_is_as_long_as_that_of_tamperbench():
    assert inspect.signature(soft_prompt).parameters["length"].default == 10


def test_the_noise_is_shrink_and_perturb_with_the_papers_beta():
    noise = Students(alphas=(0.5,)).noise
    assert (noise.func, noise.args, noise.keywords) == (shrink_perturb, (), {"beta": 0.1})


def test_validation_has_the_seed_of_the_official_code():
    assert VALIDATION_SEED == 42


@pytest.mark.parametrize("loss", [distillation, reverse_distillation, jsd_distillation])
def test_teachers_are_matched_as_they_are(loss):
    """Temperature 1 is none."""
    assert loss.__kwdefaults__ == {"temperature": 1.0}

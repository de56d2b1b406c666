"""What an experiment gets that does not say it: the reference's own numbers, where it has any."""

import dataclasses
import inspect

import pytest

from undo_jax.config import Damage, Distill, Experiment, Pretrain, Relearn, Unlearn
from undo_jax.methods.maxent import maxent
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.progress import Saving
from undo_jax.settings.arithmetic import VALIDATION_SEED, Arithmetic
from undo_jax.settings.language import Language
from undo_jax.train import Training

DEFAULTS = {
    Arithmetic: {
        "forms": ("equation", "word_problem"), "problems": 1_000_000, "row_length": 256,
        "examine": "held_out_facts", "questions": 100, "validation_rows": 16, "tokenizer": None,
        "text": None, "text_share": 0.75, "data_seed": 99,
    },
    Language: {
        "names": ("English", "Korean"), "retain_share": 0.5, "validation_rows": 240,
        "rows_at_once": 8,
    },
    Training: {"accumulation": 1},
    Pretrain: {"base": None},
    Unlearn: {"method": maxent},
    Damage: {"fresh_student": True, "student": None},
    Distill: {"tolerance": 0.05, "stop_early": True},
    Relearn: {"attacks": ("forget",)},
    Experiment: {"seeds": (0,), "together": 64},
    Saving: {"every": 10, "minutes": 5.0, "keep": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(DEFAULTS), ids=lambda kind: kind.__name__)
def test_defaults(kind):
    values = {f.name: f.default for f in dataclasses.fields(kind)}
    plain = (int, float, str, bool, tuple, type(None))
    found = {n: v for n, v in values.items() if isinstance(v, plain) or inspect.isfunction(v)}
    assert found == DEFAULTS[kind]


def test_the_noise_is_shrink_and_perturb_with_the_papers_beta():
    noise = Damage(alphas=(0.5,)).noise
    assert (noise.func, noise.args, noise.keywords) == (shrink_perturb, (), {"beta": 0.1})


def test_validation_has_the_seed_of_the_official_code():
    assert VALIDATION_SEED == 42

"""Attacks that first change a model, and data that an attacker has."""

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import undo_jax
from undo_jax.attack import Attack
from undo_jax.attacks.benign import benign
from undo_jax.attacks.interpolate import interpolate
from undo_jax.attacks.noise import noise
from undo_jax.attacks.prune import prune
from undo_jax.data.streams import BatchSequence, RepeatedRows
from undo_jax.runner.load_experiment import load
from undo_jax.training.optim import AdamW, Trains
from undo_jax.training.train_step import Training
from undo_jax.types import Packed

HOW = Training(10, 4, AdamW(), 2)
RNG = np.random.default_rng(0)
PARAMS = {
    "embedding": RNG.normal(size=(6, 4)).astype(np.float32),
    "layers": {"up": RNG.normal(size=(2, 4, 5)).astype(np.float32)},
}
KEY = jax.random.key(0)


@pytest.mark.slow
def test_noise_is_that_of_its_kind():
    made = noise(alpha=0.25).prepare(None, PARAMS, KEY)
    limit = (6 / 9) ** 0.5
    rest = made["layers"]["up"] - 0.75 * PARAMS["layers"]["up"]
    assert 0.5 < np.abs(rest).max() / (0.25 * 0.1 * limit) <= 1 + 1e-5
    assert noise(HOW, (1e-3,)).name == "noise-0.1-relearn"
    with pytest.raises(ValueError, match=r"alpha=2 is outside \[0, 1\]"):
        noise(alpha=2)


def test_what_is_no_noise_is_refused():
    for wrong, said in ((None, "kind=None is no function"), (lambda lm, key: key, "too many")):
        with pytest.raises(ValueError, match=said):
            noise(kind=wrong)


@pytest.mark.slow
def test_the_smallest_weights_are_pruned():
    made = prune(share=0.5).prepare(None, PARAMS, KEY)
    for own, cut in zip(PARAMS["layers"]["up"], made["layers"]["up"], strict=True):
        least = np.sort(np.abs(own).ravel())[:10]
        np.testing.assert_array_equal(cut, np.where(np.abs(own) <= least[-1], 0, own))
    assert prune().name == "prune-0.2"
    with pytest.raises(ValueError, match=r"share=-1 is outside \[0, 1\]"):
        prune(share=-1)


def test_interpolation_is_on_the_line_to_the_base():
    base = jax.tree.map(lambda w: w + 1, PARAMS)
    attack = interpolate(base="the recipe", share=0.25)
    made = attack.prepare(None, PARAMS, KEY, base)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), made,
                 jax.tree.map(lambda w: w + 0.25, PARAMS))  # fmt: skip
    assert attack.extra_models == ("the recipe",)
    with pytest.raises(ValueError, match="needs the base: give base="):
        interpolate().prepare(None, PARAMS, KEY)
    with pytest.raises(ValueError, match="a base of the model's own shape"):
        attack.prepare(None, PARAMS, KEY, {"embedding": base["embedding"]})


def test_benign_data_and_then_forget_data():
    assert (benign(HOW, (1.0,)).stream, benign(HOW, (1.0,)).opening) == ("retain", None)
    attack = benign(HOW, (1.0,), share=0.4)
    assert attack.data == ("forget", "relearn/benign-0.4", None, ("retain", 4), None)
    with pytest.raises(ValueError, match=r"share=0: give the share of steps"):
        benign(HOW, (1.0,), share=0)


class Counted:
    """Batches of which each row is its number."""

    def __init__(self, first=0):
        self.first = first

    def __getitem__(self, index):
        step, rows = index
        numbers = np.arange(4)[rows] + 4 * step + self.first
        return Packed(numbers[:, None], numbers[:, None] / 2)


@pytest.mark.parametrize("count", [1, 3, 4, 6, 9])
def test_a_few_rows_come_over_and_over(count):
    few = RepeatedRows(Counted(), 4, count)
    found = [few[step, slice(None)] for step in range(5)]
    numbers = np.concatenate([part.tokens[:, 0] for part in found])
    assert numbers.tolist() == [i % count for i in range(20)]
    np.testing.assert_array_equal(few[2, slice(1, 3)].tokens, found[2].tokens[1:3])
    np.testing.assert_array_equal(found[3].weights, found[3].tokens / 2)


def test_an_opening_comes_first():
    batches = BatchSequence(Counted(), 2, Counted(100))
    found = [batches[step, slice(0, 1)].tokens[0, 0] for step in range(4)]
    assert found == [0, 4, 100, 104]


def test_an_attack_that_starves_says_so():
    with pytest.raises(ValueError, match="rows=0: attack forget starves, it has nothing to train"):
        Attack("forget", HOW, (1e-3,), rows=0)
    with pytest.raises(ValueError, match="opening=.*give a stream, and a share between 0 and 1"):
        Attack("forget", HOW, (1e-3,), opening=("retain", 1.0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"training": "long"}, "training='long': give Training"),
        ({"learning_rates": 1e-3}, "learning_rates=0.001: give a tuple"),
        ({"keep_at": 1}, "keep_at=1: give a tuple"),
        ({"extra_models": "base"}, "extra_models='base': give a tuple"),
        ({"stream": None}, "stream=None: give a stream's name"),
        ({"opening": "retain"}, "opening='retain': give a stream, and a share"),
        ({"opening": (None, 0.5)}, "opening=.None, 0.5.: give a stream, and a share"),
        ({"opening": ("retain", "half")}, "opening=.*: give a stream, and a share"),
        ({"adapt": None}, "adapt=None is no function"),
        ({"loss": None}, "loss=None is no function"),
        ({"prepare": 3}, "prepare=3 is no function"),
        ({"prepare": lambda lm, params: params}, "prepare <lambda>: too many positional"),
        ({"adapt": lambda lm, params: lm}, "adapt <lambda>: missing a required argument: 'params'"),
        ({"loss": lambda lm, params, batch: 0.0}, "loss <lambda>: too many positional"),
        ({"trains": "all"}, "trains='all': give Trains"),
        ({"opening": ("retain", 0.01)}, "of 10 steps that is 0: give a share that is some"),
        ({"opening": ("retain", 0.99)}, "of 10 steps that is 10: give a share that is some"),
        ({"training": None}, "attack mine does nothing: give it a training"),
        ({"training": None, "rows": 4}, "attack mine has rows and no training"),
        ({"training": None, "opening": ("retain", 0.5)}, "mine has opening and no training"),
        ({"training": None, "trains": Trains(((".", None),))}, "mine has trains and no training"),
    ],
)
def test_what_is_no_attack(wrong, said):
    with pytest.raises(ValueError, match=said):
        Attack(**{"name": "mine", "training": HOW, "learning_rates": (1e-3,), **wrong})


def test_what_trains_needs_a_training():
    for name in ("forget", "mixed", "benign", "held_out", "permuted", "lora", "soft_prompt"):
        make = getattr(importlib.import_module(f"undo_jax.attacks.{name}"), name)
        with pytest.raises(ValueError, match=f"attack {name} (does nothing|has trains and no)"):
            make(None, (1e-3,))


def test_the_other_model_of_an_attack_is_a_recipe():
    toy = load(str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py"))
    with pytest.raises(ValueError, match="other model of attack interpolate-0.5 is 'base': give a"):
        replace(toy.experiment(), attacks=(interpolate(base="base"),))

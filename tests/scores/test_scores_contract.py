"""Every file of undo_jax/scores/ keeps the contract of a score; then each score's own mathematics.

A new score needs no edit here.
"""

import inspect
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from small_settings import small_arithmetic

from undo_jax import scores
from undo_jax.evals.scoring import check_scores, compute_score
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.scores.cross_entropy import cross_entropy
from undo_jax.scores.parameter_norm import parameter_norm
from undo_jax.scores.repetition import _repeated

SETTING = small_arithmetic(Path())
LM = preset("2B", layers=2, width=16, feed_forward=32, heads=2, kv_heads=2, head_width=8,
            vocabulary=24, dtype="float32")  # fmt: skip
NAMES = scores.names()


@cache
def _params():
    return jax.jit(LM.init)(jax.random.key(0))


def _scored(name, mesh, setting=SETTING):
    with jax.set_mesh(mesh):
        params = jax.device_put(_params(), shardings(_params(), LM.rules, mesh))
        return compute_score(scores.find_score(name), LM, params, setting)


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshShape(), jax.devices()[:1])


def test_scores_are_found():
    assert {"cross_entropy", "parameter_norm", "repetition"} <= set(NAMES)
    with pytest.raises(ValueError, match="^there is no score 'nothing': choose from cross_entropy"):
        scores.find_score("nothing")


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    function = scores.find_score(name)
    parameters = inspect.signature(function).parameters
    assert function.__module__ == f"undo_jax.scores.{name}" and function.__name__ == name
    assert list(parameters)[:3] == ["lm", "params", "setting"]
    for parameter in list(parameters.values())[3:]:
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    assert inspect.getdoc(function)
    check_scores((function,))


@pytest.mark.parametrize("name", NAMES)
def test_gives_the_same_numbers_again_and_on_a_mesh(name, one_device):
    numbers = _scored(name, one_device)
    assert numbers and all(type(x) is float and math.isfinite(x) for x in numbers.values())
    assert _scored(name, one_device) == numbers
    split = _scored(name, make_mesh(MeshShape(data=2, fsdp=2, tensor=2)))
    assert split == pytest.approx(numbers, rel=1e-4)


@pytest.mark.parametrize("answers_only", [False, True])
def test_cross_entropy_is_the_mean_over_tokens_that_count(one_device, answers_only):
    setting = replace(SETTING, answers_only=answers_only)
    with jax.set_mesh(one_device):
        numbers = cross_entropy(LM, _params(), setting, batches=2, batch_size=3)
    for stream, number in numbers.items():
        batches = [setting.stream(stream, 3, 0)[step] for step in range(2)]
        tokens = np.concatenate([getattr(batch, "tokens", batch) for batch in batches])
        hidden = LM.hidden(_params(), tokens[:, :-1])
        log_p = jax.nn.log_softmax(
            LM.softcap * np.tanh(hidden @ LM.table(_params()).T / LM.softcap)
        )
        log_p = np.take_along_axis(np.asarray(log_p), tokens[:, 1:, None], -1)[..., 0]
        weights = np.ones(log_p.shape)
        if answers_only:
            weights = np.concatenate([batch.weights for batch in batches])[:, 1:]
        assert number == pytest.approx(-np.sum(weights * log_p) / np.sum(weights), rel=1e-4)


def test_parameter_norm_is_that_of_all_parameters(one_device):
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(_params())]
    with jax.set_mesh(one_device):
        numbers = parameter_norm(LM, _params(), SETTING)
    flat = np.concatenate(leaves)
    assert numbers["l2"] == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    assert numbers["rms"] == pytest.approx(np.sqrt(np.mean(flat**2)), rel=1e-5)


def test_repetition_is_the_share_of_n_grams_seen_before():
    assert _repeated([1, 2, 3, 4, 5], 3) == 0
    assert _repeated([1, 1, 1, 1, 1], 3) == pytest.approx(2 / 3)
    assert _repeated([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)
    assert _repeated([1], 2) == 0


def test_what_is_no_score_is_refused():
    def no_setting(lm, params):
        return {}

    for wrong, message in (
        (cross_entropy, "give a tuple of functions"),
        (("cross_entropy",), "give a tuple of functions"),
        ((no_setting,), r"score no_setting takes \(lm, params\): give it \(lm, params, setting\)"),
        ((cross_entropy, cross_entropy), "one is given twice"),
        ((lambda lm, params, setting: {},), "a lambda of"),
    ):
        with pytest.raises(ValueError, match=message):
            check_scores(wrong)
    for returned, message in (
        (None, "score gives gives None: give a dict of numbers by names"),
        ({"a": "b"}, "score gives gives 'b' for 'a': give a number"),
        ({1: 2.0}, "score gives gives {1: 2.0}"),
    ):

        def gives(lm, params, setting, returned=returned):
            return returned

        with pytest.raises(ValueError, match=message):
            compute_score(gives, LM, {}, SETTING)

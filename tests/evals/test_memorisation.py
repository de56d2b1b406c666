"""Metrics of one text, and of models by many, against numbers computed by hand."""

import math
import zlib

import numpy as np
import pytest
from scipy import stats

from undo_jax.evals import memorisation, tofu_muse

HALVES = np.log(np.array([0.5, 0.25, 0.5, 0.125]))


def test_probability_is_the_geometric_mean():
    assert memorisation.probability(HALVES) == pytest.approx(2 ** (-7 / 4))
    assert memorisation.loss(HALVES) == pytest.approx(7 / 4 * math.log(2))
    text = "a text " * 9
    expected = 7 / 4 * math.log(2) / len(zlib.compress(text.encode()))
    assert memorisation.zlib_loss(HALVES, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("likeliest", "exact", "strength"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),
        ([0, 0, 0, 0], 0.0, 0.0),
        ([1, 0, 1, 1], 0.75, 0.5),  # after two tokens it writes the rest
        ([1, 1, 1, 0], 0.75, 0.0),
        ([0, 1, 1, 1], 0.75, 0.75),
    ],
)
def test_what_a_model_writes_by_itself(likeliest, exact, strength):
    assert memorisation.exact_memorisation(np.array(likeliest, bool)) == exact
    assert memorisation.extraction_strength(np.array(likeliest, bool)) == strength


def test_truth_ratio_is_the_mean_of_wrong_answers_over_the_right_one():
    assert memorisation.truth_ratio(0.4, [0.1, 0.3]) == pytest.approx(0.5)
    assert tofu_muse.truth_ratio_forget([0.5, 2.0, 1.0]) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert tofu_muse.truth_ratio_retain([0.25, 3.0]) == pytest.approx(0.75 / 2)


def test_min_k_is_of_the_lowest_tokens():
    log_p = np.array([-1.0, -5.0, -2.0, -3.0, -4.0])
    assert memorisation.min_k(log_p) == 4.5  # two of five
    assert memorisation.min_k(log_p, 0.1) == 5.0  # one at least
    mean, deviation = np.array([-1.0, -4.0, -1.0, -1.0, -1.0]), np.array([1.0, 2, 0.5, 1, 1])
    # in deviations: 0, −1/2, −2, −2, −3
    assert memorisation.min_k_plus_plus(log_p, mean, deviation) == 2.5
    sure = memorisation.min_k_plus_plus(np.array([-1e-6]), np.zeros(1), np.zeros(1))
    assert sure == pytest.approx(1.0)


def test_forget_quality_is_scipys_test():
    rng = np.random.default_rng(0)
    ours, oracles = rng.uniform(size=80), rng.uniform(size=60) ** 4
    assert tofu_muse.forget_quality(ours, ours) == 1.0
    assert tofu_muse.forget_quality(ours, oracles) == stats.ks_2samp(ours, oracles).pvalue < 1e-4
    # of the six orders of two and two numbers, two are as far apart
    assert tofu_muse.forget_quality([1.0, 2.0], [3.0, 4.0]) == pytest.approx(2 / 6)


def test_utility_is_the_harmonic_mean_of_nine():
    scores = dict.fromkeys(tofu_muse.NINE, 0.5) | {tofu_muse.NINE[0]: 0.25}
    assert tofu_muse.model_utility(scores) == pytest.approx(9 / (8 / 0.5 + 1 / 0.25))
    assert tofu_muse.model_utility(scores | {tofu_muse.NINE[3]: 0.0}) == 0.0


def test_membership():
    """Of six pairs the first is lower in three, and equal in one."""
    area = tofu_muse.area_under_curve([1.0, 3.0], [1.0, 2.0, 4.0])
    assert area == pytest.approx((0.5 + 1 + 1 + 1) / 6)
    assert tofu_muse.privacy_leak(1.0) == -100.0  # as the model that was trained on it
    assert tofu_muse.privacy_leak(0.4, 0.6) == pytest.approx(50.0)
    assert tofu_muse.privacy_leak(0.6, 0.6) == 0.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: memorisation.loss(np.zeros(0)), "a text without tokens"),
        (lambda: memorisation.min_k(HALVES, 0.0), "share=0.0"),
        (lambda: memorisation.truth_ratio(0.5, []), "without"),
        (lambda: tofu_muse.forget_quality([], [1.0]), "truth ratios of the model"),
        (lambda: tofu_muse.forget_quality([1.0], [math.nan]), "truth ratios of the oracle"),
        (lambda: tofu_muse.model_utility({}), "retain/probability"),
        (lambda: tofu_muse.area_under_curve([], [1.0]), "members and nonmembers"),
        (lambda: tofu_muse.privacy_leak(1.5), "area=1.5"),
    ],
)
def test_what_has_no_score_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()

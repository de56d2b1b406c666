"""Statistics against values worked out by hand, or by going through every resample."""

import itertools
import math

import numpy as np
import pytest

from undo_jax.report.claims import FAILS, HOLDS, OPEN, Claim
from undo_jax.report.statistics import Spread, area, bootstrap, paired, shares, steps_to, student


def test_bootstrap_is_that_of_every_resample():
    values = (0.1, 0.4, 0.2, 0.9, 0.35)
    every = [np.mean(some) for some in itertools.product(values, repeat=5)]
    wanted = np.quantile(every, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap(Spread(values)), wanted, atol=0.02)
    assert bootstrap(Spread(values)) == bootstrap(Spread(values[::-1]))
    assert bootstrap(Spread((0.0, 1.0))) == (0.0, 1.0)


def test_students_interval_by_hand():
    """t of 0.975 with two degrees of freedom is 4.30265, with four 2.77645 (any table)."""
    np.testing.assert_allclose(
        student(Spread((1.0, 2.0, 3.0))), [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], rtol=1e-5
    )
    five = Spread((1.0, 2.0, 3.0, 4.0, 5.0))
    reach = 2.77645 * (2.5 / 5) ** 0.5
    np.testing.assert_allclose(student(five), [3 - reach, 3 + reach], rtol=1e-5)


@pytest.mark.parametrize("interval", [bootstrap, student])
def test_an_interval_needs_two_seeds_and_leaves_out_what_is_not_finite(interval):
    assert all(map(math.isnan, interval(Spread((1.0,)))))
    assert all(map(math.isnan, interval(Spread(()))))
    clean = interval(Spread((1.0, 2.0, 4.0)))
    assert interval(Spread((1.0, math.nan, 2.0, math.inf, 4.0))) == clean


def test_curves_by_hand():
    accuracy = {0: 0.1, 10: 0.5, 30: 0.9}
    found = shares(accuracy, nothing=0.1, everything=0.9)
    assert found == pytest.approx({0: 0.0, 10: 0.5, 30: 1.0})
    assert area(found) == pytest.approx((0.25 * 10 + 0.75 * 20) / 30)
    assert steps_to(found, 0.4) == 10 and steps_to(found, 0.51) == 30
    assert steps_to({0: 0.1, 5: 0.2}, 0.5) == math.inf
    assert math.isnan(area({0: 0.3})) and math.isnan(area({}))
    entropy = shares({0: 6.0, 10: 3.0}, nothing=6.0, everything=2.0)  # lower is better
    assert entropy == pytest.approx({0: 0.0, 10: 0.75})


def test_seeds_are_paired_by_name_or_lent_by_one_that_is_no_seed_of_theirs():
    def less(mine, others):
        return paired(*_given(mine), *_given(others)).values

    def _given(values):
        return tuple(values), Spread(tuple(values.values()))

    assert less({1: 3.0, 2: 4.0}, {2: 1.0, 1: 1.5}) == (1.5, 3.0)
    assert less({1: 3.0, 2: 4.0}, {42: 1.0}) == (2.0, 3.0)  # made once for all
    assert less({42: 1.0}, {1: 3.0, 2: 4.0}) == (-2.0, -3.0)
    known, unknown = less({1: 3.0, 2: 4.0}, {1: 1.0})  # the other's second is not finished
    assert known == 2.0 and math.isnan(unknown)
    assert less({1: 3.0}, {}) == less({}, {1: 3.0}) == ()


@pytest.mark.parametrize(
    ("values", "bound", "above", "verdict"),
    [
        ((0.30, 0.31, 0.29), 0.0, True, HOLDS),
        ((-0.30, -0.31, -0.29), 0.0, True, FAILS),
        ((0.30, 0.31, 0.29), 0.5, True, FAILS),
        ((0.30, 0.31, 0.29), 0.5, False, HOLDS),
        ((0.1, 0.9, 0.2), 0.0, True, OPEN),  # all seeds are above, but three cannot tell
        ((0.3,), 0.0, True, OPEN),
        ((), 0.0, True, OPEN),
    ],
)
def test_verdict(values, bound, above, verdict):
    claim = Claim("says", "arithmetic", "quantity", dict(enumerate(values)), bound, above)
    assert claim.verdict == verdict


def test_the_number_of_a_claim_is_golden():
    claim = Claim("says", "arithmetic", "quantity", {0: 1.0, 1: 2.0, 2: 3.0}, bound=1.5)
    assert claim.number == "+2.00 [+1.00, +3.00], Student's [-0.48, +4.48], 2 of 3 seeds"
    assert Claim("", "", "", {7: 0.25}).number == "+0.25, 1 of 1 seeds"
    assert Claim("", "", "", {}).number == "no finished seed"

"""How much of the retain score an attack must keep."""

from math import inf, nan

import pytest

from undo_jax.retain_bound import keeps_retain


@pytest.mark.parametrize(
    ("score", "before", "higher_is_better", "min_retain", "expected"),
    [
        (0.45, 0.5, True, 0.9, True),
        (0.4499, 0.5, True, 0.9, False),
        (1.0, 0.5, True, 1.0, True),
        (0.499, 0.5, True, 1.0, False),
        (4.4, 4.0, False, 0.9, True),
        (4.41, 4.0, False, 0.9, False),
        (1.0, 4.0, False, 0.9, True),
        # log-probabilities, which are negative
        (-1.1, -1.0, True, 0.9, True),
        (-1.11, -1.0, True, 0.9, False),
        (-0.9, -1.0, False, 0.9, True),
        (-0.89, -1.0, False, 0.9, False),
        # no bound
        (0.0, 0.5, True, 0.0, True),
        (99.0, 4.0, False, 0.0, True),
        (99.0, nan, False, 0.0, True),
        # a model that diverged, or has no score
        (nan, 0.5, True, 0.9, False),
        (nan, 4.0, False, 0.9, False),
        (nan, 0.5, True, 0.0, False),
        (inf, 4.0, False, 0.9, False),
        (0.5, nan, True, 0.9, False),
        (4.0, nan, False, 0.9, False),
    ],
)
def test_keeps_retain(score, before, higher_is_better, min_retain, expected):
    assert keeps_retain(score, before, higher_is_better, min_retain) is expected

"""Pareto fronts and hypervolumes against areas counted by hand and cell by cell."""

import math

import numpy as np
import pytest

from undo_jax.report.pareto_fronts import front, hypervolume

STAIRS = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]


def test_a_front_leaves_out_what_another_place_matches():
    others = [(0.5, 3.0), (1.0, 1.0), (2.0, 1.0), (2.0, 2.0), (math.nan, 9.0), (9.0, math.nan)]
    found = front([*STAIRS, *others])
    assert found == [(3.0, 1.0), (2.0, 2.0), (1.0, 3.0)]
    assert front([]) == []


@pytest.mark.parametrize(
    ("places", "worst", "area"),
    [
        ([], (0, 0), 0),
        ([(2, 3)], (0, 0), 6),
        ([(2, 3)], (1, 1), 2),
        ([(2, 3)], (2, 0), 0),  # not better than the worst in both
        ([(2, 3), (1, 1), (2, 2)], (0, 0), 6),  # what is dominated adds nothing
        (STAIRS, (0, 0), 6),  # 3 × 1 + 2 × 1 + 1 × 1
        (STAIRS, (1, 1), 1),
        (STAIRS, (-1, -1), 13),  # 4 × 2 + 3 × 1 + 2 × 1
        ([(math.nan, 3), (1, 1)], (0, 0), 1),
    ],
)
def test_hypervolumes_by_hand(places, worst, area):
    assert hypervolume(places, worst) == area


def test_hypervolumes_cell_by_cell():
    rng = np.random.default_rng(0)
    for _ in range(20):
        places = rng.integers(-2, 12, (int(rng.integers(1, 9)), 2))
        x, y = np.meshgrid(np.arange(12), np.arange(12))  # cells, by their lower corners
        covered = [(x < px) & (y < py) for px, py in places]
        assert hypervolume([(px, py) for px, py in places.tolist()]) == np.any(covered, 0).sum()

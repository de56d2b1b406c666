"""Pareto fronts of two scores that are both better if larger."""

import math
from collections.abc import Iterable

Place = tuple[float, float]


def front(places: Iterable[Place]) -> list[Place]:
    """Returns the places that no other place matches in both scores, by falling first score."""
    result: list[Place] = []
    finite = {place for place in places if all(map(math.isfinite, place))}
    for place in sorted(finite, reverse=True):
        if not result or place[1] > result[-1][1]:
            result.append(place)
    return result


def hypervolume(places: Iterable[Place], worst: Place = (0.0, 0.0)) -> float:
    """Returns the area that the places dominate above `worst` (Zitzler and Thiele, 1998).

    For two scores it is a sum of strips under the front.
    """
    area, height = 0.0, worst[1]
    for x, y in front(places):
        if x > worst[0] and y > height:
            area += (x - worst[0]) * (y - height)
            height = y
    return area

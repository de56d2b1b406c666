"""Pareto fronts of two scores that are both better if larger."""

import math
from collections.abc import Iterable

Place = tuple[float, float]


def front(places: Iterable[Place]) -> list[Place]:
    """The places that no other place matches in both scores, by falling first score."""
    found: list[Place] = []
    known = {place for place in places if all(map(math.isfinite, place))}
    for place in sorted(known, reverse=True):
        if not found or place[1] > found[-1][1]:
            found.append(place)
    return found


def hypervolume(places: Iterable[Place], worst: Place = (0.0, 0.0)) -> float:
    """The area of all that is better than `worst` in both scores, and no better than some place.

    For two scores it is a sum of strips under the front (Zitzler and Thiele, 1998).
    """
    area, height = 0.0, worst[1]
    for x, y in front(places):
        if x > worst[0] and y > height:
            area += (x - worst[0]) * (y - height)
            height = y
    return area

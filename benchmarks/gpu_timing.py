"""How long a program takes on a device."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

LEAST = 0.05  # seconds of a measurement


def milliseconds(run: Callable[[], Any]) -> float:
    """Of one call: the median of three measurements of calls that follow one another at once."""

    def seconds(count: int) -> float:
        started, output = time.perf_counter(), None
        for _ in range(count):
            output = run()
        jax.block_until_ready(output)
        return (time.perf_counter() - started) / count

    seconds(1)  # compiles
    count = max(1, min(100, math.ceil(LEAST / seconds(1))))
    return 1e3 * statistics.median(seconds(count) for _ in range(3))

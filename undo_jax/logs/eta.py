"""The remaining time of a training, and lines printed at intervals."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RECENT = 60.0  # seconds; a rate is that of the last minute, or of the last two records


def estimate_seconds_left(records: deque[tuple[float, int]], total: int) -> float | None:
    """Estimates the seconds until `total` steps are done, at the recent rate.

    Args:
        records: the time and the steps done of each record, the first one after compilation.
            Records that are no longer needed are dropped.
        total: the number of steps.

    Returns:
        The seconds, None before there is a rate.
    """
    while len(records) > 2 and records[1][0] <= records[-1][0] - RECENT:
        records.popleft()
    if len(records) < 2 or records[-1][1] == records[0][1]:
        return None
    (first_time, first_step), (last_time, last_step) = records[0], records[-1]
    return (total - last_step) * (last_time - first_time) / (last_step - first_step)


def format_clock(seconds: float | None) -> str:
    """Formats seconds as on a clock, e.g. 1:05 or 2:00:00; – for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def call_every(seconds: float, function: Callable[[], None]) -> Iterator[None]:
    """Calls a function every so many seconds while the block runs, in a thread of its own."""
    finished = threading.Event()

    def repeat() -> None:
        while not finished.wait(seconds):
            function()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()

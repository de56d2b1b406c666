"""The time of work under way: what is left of it, and a line every so often."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RECENT = 60.0  # seconds; a rate is that of the last minute, or of the last two records


def estimate_seconds_left(seen: deque[tuple[float, int]], total: int) -> float | None:
    """Seconds until `total` steps are done, at the recent rate; None before there is one.

    `seen` has the time and the steps done of each record, the first one after compilation. Records
    that are no longer needed are dropped from it.
    """
    while len(seen) > 2 and seen[1][0] <= seen[-1][0] - RECENT:
        seen.popleft()
    if len(seen) < 2 or seen[-1][1] == seen[0][1]:
        return None
    (began, first), (now, last) = seen[0], seen[-1]
    return (total - last) * (now - began) / (last - first)


def format_clock(seconds: float | None) -> str:
    """Seconds as on a clock, e.g. 1:05 or 2:00:00; – for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def call_every(seconds: float, tell: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `tell` is called every so many seconds, by a thread of its own."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(seconds):
            tell()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""Jobs in this process or in several others."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

Job = tuple[Any, ...]  # arguments of a step, after the first one

_first: Any = None  # a worker process's first argument of steps


def run_jobs(
    step: Callable[..., None], first: Any, jobs: Sequence[Job], workers: int
) -> Iterator[None]:
    """Runs `step(first, *job)` for each job, and yields whenever one is done.

    Several `workers` are spawned processes, which get `first` once. Raises what a step raises, and
    OSError when a process dies.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield step(first, *job)
        return
    context, count = multiprocessing.get_context("spawn"), min(workers, len(jobs))
    with ProcessPoolExecutor(count, context, _start_worker, (first,)) as pool:
        try:
            for future in as_completed([pool.submit(_work, step, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died, perhaps for lack of memory: the same command goes on, "
                "with fewer workers if you like"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(first: Any) -> None:
    """Initialises a worker process."""
    global _first
    _first = first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback


def _end_with_parent() -> None:
    """Ends when the parent is killed; a worker would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(step: Callable[..., None], job: Job) -> None:
    step(_first, *job)

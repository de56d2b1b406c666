"""Jobs that report their progress, in this process or in several others."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

Job = tuple[Any, ...]  # arguments of a step, after the first one
Step = Callable[..., Iterator[tuple[int, int]]]  # yields documents and tokens that are done

_first: Any = None  # a worker process's first argument of steps, and counters shared with others
_counters: Any = None


def run_jobs(
    step: Step, first: Any, jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, int, int]]:
    """Runs `step(first, *job)` for each job; yields from time to time what is done.

    Several `workers` are spawned processes, which get `first` once. Yields how many jobs, documents
    and tokens are done. Raises what a step raises, and OSError when a process dies.
    """
    documents = tokens = 0
    if workers == 1 or len(jobs) < 2:
        due = time.monotonic()
        for done, job in enumerate(jobs):
            for more_documents, more_tokens in step(first, *job):
                documents, tokens = documents + more_documents, tokens + more_tokens
                if time.monotonic() > due:
                    yield done, documents, tokens
                    due = time.monotonic() + 0.1
        yield len(jobs), documents, tokens
        return
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", 3)  # documents, tokens, whether to stop
    counters = shared.get_obj()  # without the lock, which a dead process might still hold
    count = min(workers, len(jobs))
    with ProcessPoolExecutor(count, context, _start_worker, (first, shared)) as pool:
        try:
            with _uninterrupted():  # this process, and workers until they are ready for Ctrl-C
                pending = {pool.submit(_work, step, job) for job in jobs}
            while pending:
                done, pending = wait(pending, 0.2, FIRST_COMPLETED)
                for future in done:
                    future.result()
                yield len(jobs) - len(pending), counters[0], counters[1]
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died, perhaps for lack of memory: the same command goes on, "
                "with fewer workers if you like"
            ) from error
        finally:
            counters[2] = 1
            pool.shutdown(cancel_futures=True)


def _start_worker(first: Any, counters: Any) -> None:
    """Initialises a worker process."""
    global _first, _counters
    _first, _counters = first, counters
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    """Ends when the parent is killed; a worker would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(step: Step, job: Job) -> None:
    """Runs a job in a worker process, until the parent asks it to stop."""
    for documents, tokens in step(_first, *job):
        with _counters.get_lock():
            _counters[0] += documents
            _counters[1] += tokens
            if _counters[2]:
                return


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Blocks Ctrl-C in the block; in processes started in it, until they unblock it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

"""Training loops that stop after a save when SIGTERM or Ctrl-C requests it."""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from undo_jax.runtime import signals
from undo_jax.runtime.signals import Preempted

_sync_points = itertools.count()  # for all loops: JAX's sync points need distinct numbers


@dataclass
class Stop:
    """A request to stop a loop, which a signal makes."""

    signal: int | None = None

    def is_requested(self) -> bool:
        """Returns whether to stop now.

        All processes must call it together, and get the same answer. A signal that comes between
        two loops stops the second one.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        return multihost_utils.reached_preemption_sync_point(next(_sync_points))

    def leave(self, message: str) -> NoReturn:
        """Raises Preempted, or KeyboardInterrupt after Ctrl-C; `message` says what was saved."""
        is_interrupt = self.signal == signal.SIGINT
        signals.raise_stop(KeyboardInterrupt(message) if is_interrupt else Preempted(message))


@contextmanager
def defer_signals() -> Iterator[Stop]:
    """In this block SIGTERM and Ctrl-C only request a stop; its end raises an open request.

    A second Ctrl-C stops at once. With several processes JAX handles SIGTERM: its preemption
    service makes all agree on the step to stop at.
    """
    stop, is_single_process = Stop(), jax.process_count() == 1

    def ask(number):
        if stop.signal is not None and number == signal.SIGINT:
            return False
        stop.signal = number
        if number == signal.SIGINT:  # not by the console, which the signal may have interrupted
            with suppress(OSError):
                os.write(
                    sys.stderr.fileno(),
                    b"\nstopping after the next save; Ctrl-C again stops at once\n",
                )
        if not is_single_process:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    with signals.raise_on_signals(signal.SIGINT, *[signal.SIGTERM] * is_single_process):
        with signals.ask_on_signals(ask):
            yield stop
        if stop.is_requested():
            stop.leave("after a finished stage")

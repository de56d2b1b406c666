"""Loops that are asked to stop, by SIGTERM or Ctrl-C, and do so where all is saved."""

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

from undo_jax import signals
from undo_jax.signals import Preempted

_asked = itertools.count()  # one for all loops: processes agree on a number that comes once


@dataclass
class Stop:
    """Whether a loop has been asked to stop."""

    signal: int | None = None

    def asked(self) -> bool:
        """Whether to stop now: the same answer in every process of a job, which all ask together.

        A signal that comes between two loops stops the second one.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        return multihost_utils.reached_preemption_sync_point(next(_asked))

    def leave(self, said: str) -> NoReturn:
        """Raises Preempted, or KeyboardInterrupt after Ctrl-C."""
        signals.leave(KeyboardInterrupt(said) if self.signal == signal.SIGINT else Preempted(said))


@contextmanager
def stoppable() -> Iterator[Stop]:
    """In this block SIGTERM and Ctrl-C only ask to stop; whoever did not is stopped at its end.

    Ctrl-C after such a request stops at once. Among several processes SIGTERM is JAX's own: it
    agrees with the others on the step to stop at.
    """
    stop, alone = Stop(), jax.process_count() == 1

    def ask(number):
        if stop.signal is not None and number == signal.SIGINT:
            return False
        stop.signal = number
        if number == signal.SIGINT:  # not through a console that may be in the middle of a line
            with suppress(OSError):
                os.write(
                    sys.stderr.fileno(),
                    b"\nstopping after the next save; Ctrl-C again stops at once\n",
                )
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    with signals.raising(signal.SIGINT, *([signal.SIGTERM] if alone else [])):
        with signals.asking(ask):
            yield stop
        if stop.asked():
            stop.leave("after a finished stage")

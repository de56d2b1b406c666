"""SIGTERM or Ctrl-C asks a training loop to stop, which it does after a save."""

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

_asked = itertools.count()  # one counter for all loops: JAX's sync points need distinct numbers


@dataclass
class Stop:
    """Whether a loop has been asked to stop."""

    signal: int | None = None

    def asked(self) -> bool:
        """Whether to stop now. All processes must call it together, and get the same answer.

        A signal that comes between two loops stops the second one.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        return multihost_utils.reached_preemption_sync_point(next(_asked))

    def leave(self, said: str) -> NoReturn:
        """Raises Preempted, or KeyboardInterrupt after Ctrl-C."""
        signals.raise_stop(
            KeyboardInterrupt(said) if self.signal == signal.SIGINT else Preempted(said)
        )


@contextmanager
def defer_signals() -> Iterator[Stop]:
    """In this block SIGTERM and Ctrl-C only ask to stop; a request still open at its end raises.

    A second Ctrl-C stops at once. With several processes JAX handles SIGTERM: its preemption
    service makes all agree on the step to stop at.
    """
    stop, alone = Stop(), jax.process_count() == 1

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
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    with signals.raise_on_signals(signal.SIGINT, *([signal.SIGTERM] if alone else [])):
        with signals.ask_on_signals(ask):
            yield stop
        if stop.asked():
            stop.leave("after a finished stage")

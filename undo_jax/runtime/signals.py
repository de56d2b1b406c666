"""SIGTERM and Ctrl-C, from the first import to the last line of a command.

In a block `raise_on_signals` they raise Preempted and KeyboardInterrupt; in a block
`ask_on_signals` inside it they first only call a function. An exception from a signal handler can
be swallowed: by a garbage collection callback, a destructor, a library that catches everything. So
a thread repeats the signal until the command has ended, and ends the process itself if the main
thread does not return from native code. There is no such thread where undo_jax is used as a
library: there the end of the block raises what was swallowed in it.

Nothing heavy is imported here: the command handles signals before it imports the rest.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

PREEMPTED = 75  # exit status after SIGTERM, EX_TEMPFAIL: the same command resumes
INTERRUPTED = 130  # after Ctrl-C
EXIT_STATUSES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED}
REPEAT_INTERVAL = 0.2  # seconds until a signal that was swallowed is raised again
GRACE = 10.0  # seconds from a signal that raises to the end of the process
SHORT_GRACE = 0.5  # the same where nothing is saved: a compiler takes minutes to return

_state = "starting"  # then "running": signals raise or ask; then "over": they are ignored
_reason: BaseException | None = None  # raised by a signal, and not yet out of the block
_ask: Callable[[int], bool] | None = None  # the function of the current block `ask_on_signals`
_saves = True  # False: there is nothing to wait for, and nothing to resume
_exit_lock = threading.Lock()  # taken once, by the thread that ends the process


class Preempted(SystemExit):
    """SIGTERM stops the process, after saving what it could. Its text says what was saved."""

    def __init__(self, message: str = ""):
        super().__init__(PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


def describe_stop(reason: BaseException) -> str:
    """Returns the line that is printed after the signal that raised `reason`."""
    event = "stopped by SIGTERM" if isinstance(reason, Preempted) else "interrupted"
    detail = f", {reason}" if str(reason) else ""
    return f"{event}{detail}{'; the same command goes on' if _saves else ''}"


def expect_no_saves() -> None:
    """Lets a signal end the process soon, until the end of the block `raise_on_signals`."""
    global _saves
    _saves = False


def install_handlers() -> None:
    """From here on a signal ends this process, whatever it does. Only for our own command."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in EXIT_STATUSES:
        signal.signal(number, _handle)
    sys.unraisablehook = unraisable_hook
    threading.Thread(target=_repeat_signals, args=(reader,), daemon=True).start()


@contextmanager
def raise_on_signals(*numbers: signal.Signals) -> Iterator[None]:
    """In this block the signals raise; if that is swallowed, the end of the block raises it again.

    After the outermost block the exit status is decided, and handlers installed by
    `install_handlers` ignore signals.
    """
    global _state, _reason, _saves
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_outermost, old_handlers = _state != "running", {}
    if is_outermost:
        _reason, _state, _saves = None, "running", True
        old_handlers = {number: signal.signal(number, _handle) for number in numbers}
    try:
        try:
            yield
        finally:
            if is_outermost:
                _state = "over"
    except BaseException:
        if _reason is None:
            raise
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    if _reason is not None:
        raise _reason from None


@contextmanager
def ask_on_signals(ask: Callable[[int], bool]) -> Iterator[None]:
    """In this part of a block `raise_on_signals`, signals raise only if `ask(signal)` is False."""
    global _ask
    _ask = ask
    try:
        yield
    finally:
        _ask = None


def raise_stop(reason: BaseException) -> NoReturn:
    """Raises `reason`, or what a signal has raised already; later signals change nothing."""
    global _reason
    if _state != "running":
        raise reason
    _reason = _reason or reason
    raise _reason


def reraise_swallowed() -> None:
    """Raises a signal's exception again where a library has turned it into its own error."""
    if _state == "running" and _reason is not None:
        raise _reason


def exit_now(status: int, line: str = "") -> None:
    """Ends this process at once, after printing `line`, unless another thread is about to."""
    if not _exit_lock.acquire(blocking=False):
        return
    if line:
        with suppress(OSError):
            stderr = sys.stderr.fileno()
            show_cursor = "\r\x1b[?25h\x1b[K" if os.isatty(stderr) else ""  # bars hide it
            os.write(stderr, f"{show_cursor}{line}\n".encode())
    os._exit(status)


def unraisable_hook(unraisable: Any) -> None:
    """Hides a signal's exception that is swallowed, since it is raised again."""
    if not _comes_from(unraisable.exc_value, _reason):
        sys.__unraisablehook__(unraisable)


def _handle(number: int, _: Any) -> None:
    """The signal handler: runs in the main thread, between two bytecodes."""
    global _reason
    if _state == "over":
        return
    if _state == "starting":
        return exit_now(EXIT_STATUSES[signal.Signals(number)], describe_stop(_exception(number)))
    if _reason is None:
        if _ask is not None and _ask(number):
            return
        _reason = _exception(number)
    elif _comes_from(sys.exception(), _reason):  # do not interrupt its clean-up
        return
    raise _reason


def _exception(number: int) -> BaseException:
    message = "" if _ask is None else "not saved"
    return Preempted(message) if number == signal.SIGTERM else KeyboardInterrupt(message)


def _comes_from(error: BaseException | None, reason: BaseException | None) -> bool:
    """Returns whether `reason` is being handled, perhaps as the context of another error."""
    while error is not None:
        if error is reason:
            return True
        error = error.__context__
    return False


def _repeat_signals(reader: int) -> None:
    """Repeats signals, in a thread, and ends the process if the main thread does not return."""
    main_thread, last_ask = threading.main_thread().ident, None
    assert main_thread is not None
    while True:
        number = os.read(reader, 1)[0]
        if number not in EXIT_STATUSES:
            continue
        # the first request in a block `ask_on_signals` only calls its function
        if _state == "running" and _ask is not None and _reason is None:
            if last_ask is not _ask or number != signal.SIGINT:
                last_ask = _ask
                continue
        grace = (GRACE if _saves else SHORT_GRACE) if _state == "running" else 0
        deadline = time.monotonic() + grace
        while _state != "over":
            if time.monotonic() >= deadline:
                reason = _reason or _exception(number)
                exit_now(EXIT_STATUSES[signal.Signals(number)], describe_stop(reason))
            signal.pthread_kill(main_thread, number)
            time.sleep(REPEAT_INTERVAL)

"""The command `undo-jax`, and `python -m undo_jax`: signals are watched before JAX is imported."""

import signal
import sys
from contextlib import suppress

from undo_jax.runtime import signals


def main() -> None:
    """Run a command and end the process with its status: see `undo_jax.cli.main.main`."""
    signals.install_handlers()
    from undo_jax.cli import main as cli
    from undo_jax.logs.log import discard_output
    from undo_jax.runtime import process_watch

    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        process_watch.exit_if_another_failed(error)
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    with suppress(OSError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads it, and the interpreter would flush it again
        discard_output(sys.stdout)
    process_watch.announce_exit(status)
    if status:  # not waiting for threads that still compile or write
        signals.exit_now(status)
    for number in signals.EXIT_STATUSES:  # all is done; Python resets our handlers before it exits
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()

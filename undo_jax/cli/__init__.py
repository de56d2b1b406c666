"""The command line: a command is a function, and its arguments are its flags."""

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from undo_jax.cli.bench import bench
from undo_jax.cli.data import pack, train_tokenizer
from undo_jax.cli.experiment import report, run
from undo_jax.cli.fit import fit, xla_flags
from undo_jax.cli.flags import parse
from undo_jax.cli.generate import generate
from undo_jax.cli.weights import export_hf, import_hf
from undo_jax.log import console
from undo_jax.progress import Preempted

TRACEBACK = "UNDO_JAX_TRACEBACK"  # set it to see where an error comes from
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "report": report,
    "bench": bench,
    "fit": fit,
    "xla-flags": xla_flags,
    "generate": generate,
    "data pack": pack,
    "data train-tokenizer": train_tokenizer,
    "import-hf": import_hf,
    "export-hf": export_hf,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends in one line on stderr and exit status 2.

    Ctrl-C ends in 130, and SIGTERM in 75 where a run goes on with the same command.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if not os.environ.get(TRACEBACK):  # what goes wrong in a save's threads is raised here, too
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        sys.excepthook = _only_here
        sys.unraisablehook = functools.partial(_still_open, sys.unraisablehook)
    try:
        if not words or words[0] in ("-h", "--help"):
            return print(_overview())
        _find(words)()
    except KeyboardInterrupt as stop:
        console.print(f"interrupted{_where(stop)}; the same command goes on")
        sys.exit(130)
    except Preempted as stop:
        console.print(f"stopped by SIGTERM{_where(stop)}; the same command goes on")
        raise
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(TRACEBACK):
            raise
        _fail(" ".join(str(error).split()) or type(error).__name__)


def _find(words: list[str]) -> Callable[[], None]:
    """The command that the words name, with its arguments."""
    known = {tuple(name.split()): command for name, command in COMMANDS.items()}
    name = next((name for name in known if tuple(words[: len(name)]) == name), None)
    if name is None:
        raise ValueError(f"unknown command {words[0]!r}: choose one of {', '.join(COMMANDS)}")
    command, rest = known[name], words[len(name) :]
    if command in (run, bench, fit):  # which flags they have depends on the experiment
        return functools.partial(command, rest)

    @functools.wraps(command)
    def later(*values, **named):
        return functools.partial(command, *values, **named)

    return parse(later, rest, " ".join(("undo-jax", *name)))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {n:<{width}}  {(f.__doc__ or '').splitlines()[0]}" for n, f in COMMANDS.items()]
    return "\n".join(["usage: undo-jax COMMAND ... (COMMAND --help tells more)", "", *lines])


def _where(stop: BaseException) -> str:
    return f", {stop}" if str(stop) else ""


def _only_here(*error: Any) -> None:
    """An error in the main thread is printed as always, one in another thread is not."""
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(*error)


def _still_open(print_it: Callable[[Any], None], what: Any) -> None:
    """After one file that failed Orbax waits no longer, and TensorStore's others find nobody."""
    if str(what.exc_value) != "Event loop is closed":
        print_it(what)


def _fail(message: str) -> NoReturn:
    print(f"undo-jax: {message}", file=sys.stderr)
    sys.exit(2)

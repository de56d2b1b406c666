"""The command line: a command is a function, and its arguments are its flags."""

import contextlib
import functools
import inspect
import logging
import os
import select
import shlex
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TextIO

import jax

from undo_jax.cli import flags
from undo_jax.cli.devices import keep_libtpu_quiet
from undo_jax.cli.discovery import Command, find_commands
from undo_jax.cli.experiment_flags import show_flags
from undo_jax.logs.log import discard_output
from undo_jax.runtime import process_watch, signals
from undo_jax.runtime.signals import Preempted

TRACEBACK = "UNDO_JAX_TRACEBACK"  # set this variable to see tracebacks
EXHAUSTED = "RESOURCE_EXHAUSTED: "  # XLA's message where a device's memory is full
MEMORY = (
    "a device has no memory for it; `undo-jax fit` tells what fits: another --mesh, a larger "
    "--STAGE.training.accumulation, or fewer rows"
)
RESUMABLE = (["run"], ["data", "pack"])  # commands that go on where they were stopped
USAGE = "usage: undo-jax COMMAND ... (COMMAND --help tells more), or undo-jax --version"

COMMANDS = find_commands()


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends in one line on stderr and exit status 2.

    Ctrl-C ends in 130 and SIGTERM in 75, both in one line; the same command resumes. If the reader
    of stdout has gone (a closed pipe), the command ends as if all had been read.
    """
    words = sys.argv[1:] if arguments is None else arguments
    keep_libtpu_quiet()
    if not os.environ.get(TRACEBACK):  # an error in a thread that saves is raised here, too
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.excepthook = _print_main_thread_error
        sys.unraisablehook = _ignore_closed_loop
    try:
        with signals.raise_on_signals(*signals.EXIT_STATUSES):
            if all(words[: len(name)] != name for name in RESUMABLE):
                signals.expect_no_saves()
            _bind(words)()
    except (KeyboardInterrupt, Preempted) as stop:
        _print_last(signals.describe_stop(stop))
        sys.exit(signals.PREEMPTED if isinstance(stop, Preempted) else signals.INTERRUPTED)
    except (ValueError, OSError, ImportError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            return discard_output(sys.stdout)
        process_watch.exit_if_another_failed(error)
        message = _message(error)
        if message is None or os.environ.get(TRACEBACK):
            raise
        _print_last(f"undo-jax: {' '.join(message.split()) or type(error).__name__}")
        sys.exit(2)


def _bind(words: list[str]) -> Callable[[], None]:
    """Returns the command that the words name, bound to its arguments."""
    if words == ["--version"]:
        return functools.partial(print, f"undo-jax {version('undo-jax')}")
    without_help = [word for word in words if word not in ("-h", "--help")]
    if without_help in ([], *([name.split()[0]] for name in COMMANDS if " " in name)):
        return functools.partial(print, _overview(*without_help))
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        raise ValueError(f"unknown command {words[0]!r}: choose one of {', '.join(COMMANDS)}")
    command, rest, program = COMMANDS[name], words[len(name.split()) :], f"undo-jax {name}"
    parse = functools.partial(
        flags.parse, _binder(command), program=program, description=flags.description(command)
    )
    if "flags" not in inspect.signature(command).parameters:
        return parse(words=rest)
    # The command also takes the flags of an experiment's file.
    file = next((word for word in rest if word.endswith(".py")), None)
    if without_help != words:
        with contextlib.suppress(SystemExit):
            parse(words=["--help"])
        return functools.partial(show_flags, file, program) if file else lambda: None
    if file:  # may stand behind a flag of its own, whose values the parser does not know
        rest.remove(file)
        rest.insert(0, file)
    bound, further = parse(words=rest, return_unknown_args=True)
    if further and (reason := flags.second_value(flags.UNKNOWN + further[0], rest)):
        raise ValueError(reason)
    positional = () if bound.args == ("[]",) else bound.args  # tyro's if unknown flags come first
    typed = {"flags": tuple(further), "command": shlex.join(["undo-jax", *words])}
    typed = {name: typed[name] for name in typed.keys() & bound.keywords.keys()}
    return functools.partial(command, *positional, **{**bound.keywords, **typed})


def _binder(command: Command) -> Callable[..., functools.partial]:
    """Returns a function of the command's arguments that checks the workdir and binds them."""

    @functools.wraps(command)
    def bind(*args, **kwargs):
        arguments = inspect.signature(command).bind(*args, **kwargs).arguments
        flags.check_workdir(arguments.get("workdir"))
        return functools.partial(command, *args, **kwargs)

    return bind


def _overview(group: str = "") -> str:
    """Returns the usage: a line for each command, or for those of a group."""
    commands = {name: f for name, f in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, commands))
    lines = [
        textwrap.fill(
            (function.__doc__ or "").splitlines()[0],
            shutil.get_terminal_size().columns,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, function in commands.items()
    ]
    return "\n".join([USAGE, "", *lines])


def _message(error: Exception) -> str | None:
    """Returns what to say of an error; None where only its traceback says enough."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        _, exhausted, message = str(error).partition(EXHAUSTED)
        return f"{message.splitlines()[0]}: {MEMORY}" if exhausted else None
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}: check the path, and who may write there"
    return str(error)


def _is_unread(stream: TextIO) -> bool:
    """Whether the stream is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_last(line: str) -> None:
    """Print the last line on stderr, if anybody still reads it."""
    try:
        print(line, file=sys.stderr)
    except BrokenPipeError:
        discard_output(sys.stderr)


def _print_main_thread_error(*error: Any) -> None:
    """Print an error of the main thread as usual, and none of other threads."""
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(*error)


def _ignore_closed_loop(unraisable: Any) -> None:
    """Ignore that other writes find Orbax's event loop closed after one write has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        signals.unraisable_hook(unraisable)

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
from undo_jax.cli.bench import bench
from undo_jax.cli.compare import compare
from undo_jax.cli.completion import Shell, tree
from undo_jax.cli.data import pack, train_tokenizer
from undo_jax.cli.demo import demo
from undo_jax.cli.devices import keep_libtpu_quiet
from undo_jax.cli.evaluate import evaluate
from undo_jax.cli.experiment import figures, report, run, show_flags
from undo_jax.cli.fit import fit, xla_flags
from undo_jax.cli.flags import parse
from undo_jax.cli.generate import generate
from undo_jax.cli.init import init
from undo_jax.cli.score import score
from undo_jax.cli.weights import export_hf, import_hf
from undo_jax.cli.workdirs import clean, list_workdir
from undo_jax.logs.log import discard_output
from undo_jax.runtime import process_watch, signals
from undo_jax.runtime.signals import Preempted

TRACEBACK = "UNDO_JAX_TRACEBACK"  # set this variable to see tracebacks
EXHAUSTED = "RESOURCE_EXHAUSTED: "  # XLA's message where a device's memory is full
MEMORY = (
    "a device has no memory for it; `undo-jax fit` tells what fits: another --mesh, a larger "
    "--STAGE.training.accumulation, or fewer rows"
)


def completion(shell: Shell) -> None:
    """Print what makes a shell complete commands and flags: eval "$(undo-jax completion bash)".

    Flags of an experiment are not completed: they depend on its file.

    Args:
        shell: the shell that evaluates it; fish reads it with `| source`.
    """
    with contextlib.suppress(SystemExit):
        parse(tree(COMMANDS), ["--tyro-print-completion", shell], "undo-jax")
    if shell == "bash":  # which completes no files by itself, e.g. of `run`
        print("complete -o default -F _tyro_undo_jax undo-jax")


COMMANDS: dict[str, Callable[..., None]] = {
    "init": init,
    "run": run,
    "report": report,
    "figures": figures,
    "demo": demo,
    "list": list_workdir,
    "score": score,
    "compare": compare,
    "clean": clean,
    "bench": bench,
    "fit": fit,
    "xla-flags": xla_flags,
    "generate": generate,
    "evaluate": evaluate,
    "data pack": pack,
    "data train-tokenizer": train_tokenizer,
    "import-hf": import_hf,
    "export-hf": export_hf,
    "completion": completion,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends in one line on stderr and exit status 2.

    Ctrl-C ends in 130 and SIGTERM in 75, both in one line; the same command resumes. If the reader
    of stdout has gone (a closed pipe), the command ends as if all had been read.
    """
    words = sys.argv[1:] if arguments is None else arguments
    keep_libtpu_quiet()
    if not os.environ.get(TRACEBACK):  # what fails in a thread that saves is raised here, too
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.excepthook = _only_here
        sys.unraisablehook = _unraisable
    try:
        with signals.raise_on_signals(*signals.EXIT_STATUSES):
            if words[:1] != ["run"] and words[:2] != ["data", "pack"]:
                signals.expect_no_saves()  # the same command begins anew
            _find(words)()
    except (KeyboardInterrupt, Preempted) as stop:
        _say(signals.describe_stop(stop))
        sys.exit(signals.PREEMPTED if isinstance(stop, Preempted) else signals.INTERRUPTED)
    except (ValueError, OSError, ImportError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
            return discard_output(sys.stdout)
        process_watch.exit_if_another_failed(error)
        said = _of_system(error) if isinstance(error, OSError) else str(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            if EXHAUSTED not in said:
                raise
            said = f"{said.split(EXHAUSTED)[1].splitlines()[0]}: {MEMORY}"
        if os.environ.get(TRACEBACK):
            raise
        _say(f"undo-jax: {' '.join(said.split()) or type(error).__name__}")
        sys.exit(2)


def _find(words: list[str]) -> Callable[[], None]:
    """The command that the words name, with its arguments."""
    if words == ["--version"]:
        return functools.partial(print, f"undo-jax {version('undo-jax')}")
    asked = [word for word in words if word not in ("-h", "--help")]
    if asked in ([], ["data"]):
        return functools.partial(print, _overview(*asked))
    known = {tuple(name.split()): command for name, command in COMMANDS.items()}
    name = next((name for name in known if tuple(words[: len(name)]) == name), None)
    if name is None:
        raise ValueError(f"unknown command {words[0]!r}: choose one of {', '.join(COMMANDS)}")
    command, rest, program = _checked(known[name]), words[len(name) :], f"undo-jax {' '.join(name)}"

    @functools.wraps(command)
    def later(*values, **named):
        return functools.partial(command, *values, **named)

    described = {"description": flags.described(command)}
    if "flags" not in inspect.signature(command).parameters:
        return parse(later, rest, program, **described)
    file = next((word for word in rest if word.endswith(".py")), None)
    if asked != words:
        with contextlib.suppress(SystemExit):
            parse(later, ["--help"], program, **described)
        return functools.partial(show_flags, file, program) if file else lambda: None
    if file:  # may stand behind a flag of its own, whose values the parser does not know
        rest.remove(file)
        rest.insert(0, file)
    made, further = parse(later, rest, program, return_unknown_args=True, **described)
    values = () if made.args == ("[]",) else made.args  # tyro's where unknown flags come first
    typed = {"flags": tuple(further), "command": shlex.join(["undo-jax", *words])}
    known = {name: typed[name] for name in typed.keys() & made.keywords.keys()}
    return functools.partial(command, *values, **{**made.keywords, **known})


def _checked(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which refuses a workdir that cannot be one."""

    @functools.wraps(command)
    def checked(*values, **named):
        given = inspect.signature(command).bind(*values, **named).arguments
        flags.check_workdir(given.get("workdir"))
        command(*values, **named)

    return checked


def _overview(group: str = "") -> str:
    """The commands, or those of a group."""
    commands = {n: f for n, f in COMMANDS.items() if n.startswith(group)}
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
    return "\n".join(
        [
            "usage: undo-jax COMMAND ... (COMMAND --help tells more), or undo-jax --version",
            "",
            *lines,
        ]
    )


def _of_system(error: OSError) -> str:
    """The error; one of the operating system alone says what it is about, and what to do."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}: check the path, and who may write there"


def _unread(stream: TextIO) -> bool:
    """Whether the stream is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _say(line: str) -> None:
    """Print the last line on stderr, if anybody still reads it."""
    try:
        print(line, file=sys.stderr)
    except BrokenPipeError:
        discard_output(sys.stderr)


def _only_here(*error: Any) -> None:
    """Print an error of the main thread as usual, and none of other threads."""
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(*error)


def _unraisable(what: Any) -> None:
    """Ignore that other writes find Orbax's event loop closed after one write has failed."""
    if str(what.exc_value) != "Event loop is closed":
        signals.unraisable_hook(what)

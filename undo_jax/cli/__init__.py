"""The command line: a command is a function, and its arguments are its flags."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from undo_jax.cli.data import pack, train_tokenizer
from undo_jax.cli.experiment import report, run
from undo_jax.cli.fit import fit, xla_flags
from undo_jax.cli.flags import parse
from undo_jax.cli.generate import generate
from undo_jax.cli.weights import export_hf, import_hf
from undo_jax.log import console

TRACEBACK = "UNDO_JAX_TRACEBACK"  # set it to see where an error comes from
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "report": report,
    "fit": fit,
    "xla-flags": xla_flags,
    "generate": generate,
    "data pack": pack,
    "data train-tokenizer": train_tokenizer,
    "import-hf": import_hf,
    "export-hf": export_hf,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends in one line on stderr and exit status 2; Ctrl-C in 130."""
    words = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        if not words or words[0] in ("-h", "--help"):
            return print(_overview())
        _find(words)()
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on after what is finished")
        sys.exit(130)
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
    if command in (run, fit):  # which flags they have depends on the experiment
        return functools.partial(command, rest)

    @functools.wraps(command)
    def later(*values, **named):
        return functools.partial(command, *values, **named)

    return parse(later, rest, " ".join(("undo-jax", *name)))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {n:<{width}}  {(f.__doc__ or '').splitlines()[0]}" for n, f in COMMANDS.items()]
    return "\n".join(["usage: undo-jax COMMAND ... (COMMAND --help tells more)", "", *lines])


def _fail(message: str) -> NoReturn:
    print(f"undo-jax: {message}", file=sys.stderr)
    sys.exit(2)

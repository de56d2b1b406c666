"""Command-line flags from types, with help in plain words and errors in one line."""

import contextlib
import inspect
import io
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, Suppress, SuppressFixed, arg

from undo_jax.runtime.atomic_files import is_remote

# Arguments without a flag, under the names that a command's help gives them.
ArtifactFolder = Annotated[Positional[str], arg(metavar="ARTIFACT")]
MaybeExperiment = Annotated[
    Positional[str | None], arg(metavar="[EXPERIMENT]", help_behavior_hint="")
]
Folder = Annotated[Positional[str], arg(metavar="FOLDER")]
Name = Annotated[Positional[str], arg(metavar="NAME")]
ModelFolder = Annotated[Positional[str], arg(metavar="MODEL")]
Out = Annotated[Positional[str], arg(metavar="OUT")]
Workdir = Annotated[Positional[str], arg(metavar="WORKDIR")]

# Flags that may be left out. Their value is then None, which help does not mention.
MaybeText = Annotated[str | None, arg(metavar="STR", help_behavior_hint="")]
MaybeInt = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
MaybeFloat = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], arg(metavar="[STR ...]", help_behavior_hint="")]
Switch = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]  # False without the flag

# The share of its retain score that a model must keep under an attack that counts; 0: every attack.
MinRetain = Annotated[float, arg(metavar="SHARE")]

# What `undo_jax.cli.main` passes to commands that take the flags of an experiment, too.
ExperimentFlags = Suppress[tuple[str, ...]]
TypedCommand = Suppress[str]  # the whole command line

FORMATS = {  # of values, by their name in help
    "INT": "a whole number",
    "FLOAT": "a number",
    "SHARE": "a number from 0 to 1",
    "[INT ...]": "whole numbers",
    "[FLOAT ...]": "numbers",
}
METAVARS = {str: "STR", Path: "STR", int: "INT", float: "FLOAT", bool: "{True,False}"}

UNKNOWN = "Unrecognized options: "  # tyro's message on words that it does not know

# A required flag or argument in tyro's messages: its name with that of its values, and its help.
REQUIRED = r"((?:--\S+ )?(?:\[.*?\]|\S+)) (.*?)\.? \(required\)"


def check_workdir(workdir: str | None) -> None:
    """Raises ValueError for a workdir that is empty, or that is no folder."""
    if workdir == "":
        raise ValueError("the workdir is empty: give the name of a folder")
    if workdir and not is_remote(workdir) and Path(workdir).exists() and not Path(workdir).is_dir():
        raise ValueError(f"{workdir} is a file: give a folder as workdir")


def plain(hint: Any, default: Any) -> Any:
    """Returns the type of a flag whose help mentions no None, no empty default and no union."""
    metavar = None if hint is bool else _metavar(hint)
    empty = default is None or (isinstance(default, tuple) and not default)
    return Annotated[hint, arg(metavar=metavar, help_behavior_hint="" if empty else None)]


def _metavar(hint: Any) -> str | None:
    """Returns the name of a type's values in help; None leaves it to tyro."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if origin is tuple:
        names = [_metavar(part) or "" for part in parts if part is not ...]
        if not all(names):
            return None
        return f"[{names[0]} ...]" if parts[-1] is ... else " ".join(names)
    if origin in (typing.Union, types.UnionType):
        names = {_metavar(part) for part in parts if part is not type(None)}
        return names.pop() if len(names) == 1 else None
    return METAVARS.get(hint)


def sentence(doc: str | None) -> str:
    """Returns the first sentence of a docstring."""
    first = " ".join((doc or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", first)[0]


def description(command: Callable[..., Any]) -> str:
    """Returns a command's docstring without its arguments, in lines that fit the terminal.

    They are indented, because tyro joins lines that begin with a letter.
    """
    text = (inspect.getdoc(command) or "").partition("\nArgs:")[0]
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(" ".join(part.split()), width, initial_indent="  ", subsequent_indent="  ")
        for part in text.split("\n\n")
    )


def parse(target: Callable[..., Any], words: list[str], program: str, **options: Any) -> Any:
    """Parse `words` by tyro for a dataclass or function; `options` go to `tyro.cli`.

    Raises ValueError, in one line, for words that do not fit.
    """
    stderr, config = io.StringIO(), (SuppressFixed, *options.pop("config", ()))
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(target, args=words, prog=program, config=config, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        _title, _, body = stderr.getvalue().partition("\n")
        body = body.partition("For full helptext")[0]
        message = " ".join(re.sub("[─│╭╮╰╯]|-{3,}", " ", body).split())
        short = _shorten_similar(_shorten_error(message))
        raise ValueError(second_value(message, words) or short) from stop


def second_value(message: str, words: Sequence[str]) -> str:
    """Returns the message on a second value where one is taken; "" for other mistakes.

    Args:
        message: tyro's, on unknown words.
        words: the command line.
    """
    if not message.startswith(UNKNOWN):
        return ""
    unknown = message.removeprefix(UNKNOWN).replace(" ", "")  # tyro breaks long words
    for flag, first, second in zip(["", "", *words], ["", *words], words, strict=False):
        word = second.replace(" ", "")
        if not word or word.startswith("-") or not unknown.startswith(word):
            continue
        if flag.startswith("--") and not first.startswith("-"):
            return (
                f"{flag} takes one value, but got {first} and {second}: give one of them; a glob "
                "may have matched both"
            )
        if first and not first.startswith("-"):
            return f"{second} follows {first}, where one value is taken: did a glob match both?"
    return ""


def _shorten_similar(message: str) -> str:
    """Returns tyro's message on unknown flags with no more than the names of similar flags."""
    first, *rest = re.split(r"(Perhaps you meant:|Arguments similar to \S+:)", message)
    flags = (dict.fromkeys(re.findall(r"(?<!\S)--[\w.-]+", text)) for text in rest[1::2])
    hints = (f"{title} {', '.join(names)}" for title, names in zip(rest[::2], flags, strict=True))
    return "; ".join([first.strip(), *(hint[0].lower() + hint[1:] for hint in hints)])


def _shorten_error(message: str) -> str:
    """Returns tyro's message on a missing or malformed value, without the types that it tried."""
    if missing := re.match(r"Missing from (?:undo-jax )?(.*?): (?=.)", message):
        required = re.findall(REQUIRED, message[missing.end() :])
        return f"{missing[1]} needs {' and '.join(f'{name} ({text})' for name, text in required)}"
    error = re.match(r"Error parsing (-\S+): (.*?) Argument helptext: -\S+ (.*)", message)
    if not error or not (values := re.search(r"'[^\[\]]*'", error[2])):
        return message
    form = next((form for name, form in FORMATS.items() if error[3].startswith(name)), None)
    words = " ".join(re.findall("'(.*?)'", values[0]))
    return message if form is None else f"{error[1]} {words}: give {form}"

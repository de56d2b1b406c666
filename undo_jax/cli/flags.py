"""Command-line flags from types, with help in plain words and errors in one line."""

import contextlib
import inspect
import io
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, Suppress, SuppressFixed, arg

from undo_jax.runtime.atomic_files import is_remote

# Arguments without a flag, under the names that a command's help gives them.
ArtifactFolder = Annotated[Positional[str], arg(metavar="ARTIFACT")]
ExperimentFile = Annotated[Positional[str], arg(metavar="EXPERIMENT")]
MaybeExperiment = Annotated[
    Positional[str | None], arg(metavar="[EXPERIMENT]", help_behavior_hint="")
]
Folder = Annotated[Positional[str], arg(metavar="FOLDER")]
Name = Annotated[Positional[str], arg(metavar="NAME")]
ModelFolder = Annotated[Positional[str], arg(metavar="MODEL")]
Out = Annotated[Positional[str], arg(metavar="OUT")]
Workdir = Annotated[Positional[str], arg(metavar="WORKDIR")]

# Flags that may be left out. Help says nothing of None, which is what they are then.
MaybeText = Annotated[str | None, arg(metavar="STR", help_behavior_hint="")]
MaybeInt = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
MaybeFloat = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], arg(metavar="[STR ...]", help_behavior_hint="")]
Switch = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]  # False without the flag

# What `undo_jax.cli` gives to commands that take the flags of an experiment, too.
Further = Suppress[tuple[str, ...]]  # those flags
AsTyped = Suppress[str]  # the whole command

FORMS = {  # of values, as help writes them
    "INT": "a whole number",
    "FLOAT": "a number",
    "[INT ...]": "whole numbers",
    "[FLOAT ...]": "numbers",
}
NAMES = {str: "STR", Path: "STR", int: "INT", float: "FLOAT", bool: "{True,False}"}

# A flag or an argument, the name of its values, and what it says of itself.
REQUIRED = r"((?:--\S+ )?(?:\[.*?\]|\S+)) (.*?)\.? \(required\)"


def check_workdir(place: str | None) -> None:
    """Raises ValueError for a workdir that is empty, or that is no folder."""
    if place == "":
        raise ValueError("the workdir is empty: give the name of a folder")
    if place and not is_remote(place) and Path(place).exists() and not Path(place).is_dir():
        raise ValueError(f"{place} is a file: give a folder as workdir")


def plain(hint: Any, default: Any) -> Any:
    """The type of a flag, whose help then says neither None nor an empty default, nor a union."""
    metavar = None if hint is bool else _metavar(hint)
    empty = default is None or (isinstance(default, tuple) and not default)
    return Annotated[hint, arg(metavar=metavar, help_behavior_hint="" if empty else None)]


def _metavar(hint: Any) -> str | None:
    """How help calls the values of a type; None: as tyro does."""
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
    return NAMES.get(hint)


def sentence(doc: str | None) -> str:
    """The first sentence of a docstring."""
    first = " ".join((doc or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", first)[0]


def described(function: Callable[..., Any]) -> str:
    """The docstring of a command without its arguments, in lines that fit the terminal.

    They are indented, for tyro joins lines that begin with a letter.
    """
    text = (inspect.getdoc(function) or "").partition("\nArgs:")[0]
    how = {"width": shutil.get_terminal_size().columns, "initial_indent": "  "}
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n".join(textwrap.fill(p, subsequent_indent="  ", **how) for p in paragraphs)


def parse(target: Callable[..., Any], words: list[str], program: str, **more: Any) -> Any:
    """Parse `words` by tyro for a dataclass or function; `more` goes to `tyro.cli`.

    Raises ValueError, in one line, for words that do not fit.
    """
    said, config = io.StringIO(), (SuppressFixed, *more.pop("config", ()))
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(target, args=words, prog=program, config=config, **more)
    except SystemExit as stop:
        if not stop.code:
            raise
        _title, _, body = said.getvalue().partition("\n")
        body = body.partition("For full helptext")[0]
        said = " ".join(re.sub("[─│╭╮╰╯]|-{3,}", " ", body).split())
        raise ValueError(_similar(_short(said))) from stop


def _similar(said: str) -> str:
    """What tyro says of unknown flags: of those like them the names alone."""
    first, *rest = re.split(r"(Perhaps you meant:|Arguments similar to \S+:)", said)
    listed = (dict.fromkeys(re.findall(r"(?<!\S)--[\w.-]+", text)) for text in rest[1::2])
    more = (f"; {of} {', '.join(names)}" for of, names in zip(rest[::2], listed, strict=True))
    return first.strip() + "".join(f"{text[:2]}{text[2].lower()}{text[3:]}" for text in more)


def _short(said: str) -> str:
    """What tyro says of a value that does not parse, without the types that it tried."""
    if lacking := re.match(r"Missing from (?:undo-jax )?(.*?): (?=.)", said):
        each = re.findall(REQUIRED, said[lacking.end() :])
        return f"{lacking[1]} needs {' and '.join(f'{name} ({what})' for name, what in each)}"
    parsed = re.match(r"Error parsing (-\S+): (.*?) Argument helptext: -\S+ (.*)", said)
    if not parsed or not (values := re.search(r"'[^\[\]]*'", parsed[2])):
        return said
    form = next((told for name, told in FORMS.items() if parsed[3].startswith(name)), None)
    given = " ".join(re.findall("'(.*?)'", values[0]))
    return said if form is None else f"{parsed[1]} {given}: give {form}"

"""Command-line flags from types, with errors in one line."""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

# Arguments without a flag, under the names that a command's help gives them.
ArtifactFolder = Annotated[Positional[str], arg(metavar="ARTIFACT")]
ExperimentFile = Annotated[Positional[str], arg(metavar="EXPERIMENT")]
Folder = Annotated[Positional[str], arg(metavar="FOLDER")]
Name = Annotated[Positional[str], arg(metavar="NAME")]
ModelFolder = Annotated[Positional[str], arg(metavar="MODEL")]
Out = Annotated[Positional[str], arg(metavar="OUT")]
Workdir = Annotated[Positional[str], arg(metavar="WORKDIR")]

FORMS = {  # of values, as tyro writes them
    "INT": "a whole number",
    "FLOAT": "a number",
    "[INT [INT ...]]": "whole numbers",
    "[FLOAT [FLOAT ...]]": "numbers",
}


def parse(target: Callable[..., Any], words: list[str], program: str, **more: Any) -> Any:
    """Parse `words` by tyro for a dataclass or function; `more` goes to `tyro.cli`.

    Raises ValueError, in one line, for words that do not fit.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(target, args=words, prog=program, **more)
    except SystemExit as stop:
        if not stop.code:
            raise
        _title, _, body = said.getvalue().partition("\n")
        body = body.partition("For full helptext")[0]
        raise ValueError(_short(" ".join(re.sub("[─│╭╮╰╯]|-{3,}", " ", body).split()))) from stop


def _short(said: str) -> str:
    """What tyro says of a value that does not parse, without the types that it tried."""
    parsed = re.match(r"Error parsing (-\S+): (.*?) Argument helptext: -\S+ (.*)", said)
    if not parsed or not (values := re.search(r"'[^\[\]]*'", parsed[2])):
        return said
    wanted = parsed[3].removeprefix("{None}|").removeprefix("{")
    form = next((told for name, told in FORMS.items() if wanted.startswith(name)), None)
    given = " ".join(re.findall("'(.*?)'", values[0]))
    return said if form is None else f"{parsed[1]} {given}: give {form}"

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
        raise ValueError(" ".join(re.sub("[─│╭╮╰╯]|-{3,}", " ", body).split())) from stop

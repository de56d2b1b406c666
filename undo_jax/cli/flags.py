"""Command-line flags from types, with errors in one line."""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import tyro


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

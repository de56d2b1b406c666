"""A terminal, or a pipe, in the place of stderr."""

import os
import re
import sys
import threading
from contextlib import contextmanager

from undo_jax.logs import log

BAR = "━" * 10


@contextmanager
def told(pair, monkeypatch):
    """What is written to stderr, which is one end of a pair, as a list that fills."""
    ours, theirs = pair()
    said = []

    def read():
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # of a terminal whose other end is closed
                return
            if not block:
                return
            said.append(block.decode(errors="replace"))

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as stderr:
        for name, value in {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(log.console, "is_interactive", True)  # as if it were so from the start
        yield said
        stderr.flush()
    reader.join(10)
    os.close(ours)


def lines(said):
    """The texts that a terminal has shown one after the other, without control codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)
    return [line for line in re.split(r"[\r\n]+", plain) if line]

"""While a step is compiled: a line on a terminal, and an end by Ctrl-C."""

import io
import os
import select
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from rich.console import Console

from undo_jax.logs import log

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
FIT = "-m undo_jax fit --preset small --length 2048 --rows 4 --topology v5e:2x2"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_alone_is_told_at_once(monkeypatch, terminal):
    said = io.StringIO()
    said.isatty = lambda: terminal
    console = Console(file=said, force_terminal=terminal, no_color=True, width=80)
    monkeypatch.setattr(log, "console", console)
    with log.show_waiting("compiling it"):
        time.sleep(0.3)
    assert ("compiling it 0:00:00" in said.getvalue()) == terminal
    assert terminal or not said.getvalue()


@pytest.mark.slow
@needs_libtpu
def test_a_line_while_it_compiles_and_another_by_ctrl_c(tmp_path):
    """The compiler is in the midst of its work, in native code, and is not waited for."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, *FIT.split()],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    try:
        said = _read_until(ours, "0:00:03", 120)
        wanted = "compiling distill of small from small for v5e:2x2: 4 rows, remat dots 0:00:03"
        assert wanted in said, said
        process.send_signal(signal.SIGINT)
        said += _read_until(ours, "interrupted\r\n", 20)
        out, _ = process.communicate(timeout=5)
    finally:
        process.kill()
        os.close(ours)
    assert (process.returncode, out) == (130, "")
    assert said.endswith("\x1b[Kinterrupted\r\n") and "Traceback" not in said


def _read_until(terminal, text, seconds):
    """What is read from a terminal until the text is, or the time is over."""
    said, deadline = "", time.monotonic() + seconds
    while text not in said and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            said += os.read(terminal, 1000).decode()
    return said

"""Ctrl-C and SIGTERM end the command in one line, whatever swallows what they raise."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import undo_jax

ROOT = Path(undo_jax.__file__).parent.parent
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75}
LINE = {
    signal.SIGINT: "interrupted; the same command goes on\n",
    signal.SIGTERM: "stopped by SIGTERM; the same command goes on\n",
}
BODIES = {  # what a command is at when it gets the signal, each ended in a minute if it is lost
    "nothing else": "send(); time.sleep(60)",
    "a garbage collection": """
class Cycle:
    pass
cycle = Cycle(); cycle.cycle = cycle; del cycle
gc.callbacks.append(lambda *_: (gc.callbacks.clear(), send(), time.sleep(0.1)))
gc.collect()
time.sleep(60)""",
    "a destructor": """
class Closed:
    def __del__(self):
        send(); time.sleep(0.1)
Closed()
time.sleep(60)""",
    "a call from native code": """
def compare(a, b):
    send(); time.sleep(0.1)
    return 0
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
ctypes.CDLL(None).qsort((ctypes.c_int * 2)(1, 0), ctypes.c_size_t(2), ctypes.c_size_t(4),
                        kind(compare))
time.sleep(60)""",
    "what catches all": """
try:
    send(); time.sleep(0.1)
except BaseException:
    pass
time.sleep(60)""",
    "what catches all, at the end": """
try:
    send(); time.sleep(0.1)
except BaseException:
    pass""",
    "what makes another error of it": """
try:
    send(); time.sleep(60)
except BaseException as error:
    raise RuntimeError("cannot read") from error""",
    "native code that does not come back": """
signals.GRACE = 0.5
lock = (ctypes.c_char * 64)()
ctypes.CDLL(None).pthread_mutex_lock(lock)
threading.Timer(0.2, send).start()
ctypes.CDLL(None).pthread_mutex_lock(lock)""",
    "a clean-up that is never done": """
signals.GRACE = 0.5
try:
    send(); time.sleep(60)
finally:
    time.sleep(60)""",
}
PROCESS = """
import ctypes, gc, os, sys, threading, time
from pathlib import Path
from undo_jax.runtime import signals
number = int(sys.argv[1])
def send():
    os.kill(os.getpid(), number)
signals.install_handlers()
signals.GRACE = 100
try:
    with signals.raise_on_signals(*signals.EXIT_STATUSES):
        exec(sys.argv[2])
except (KeyboardInterrupt, signals.Preempted) as stop:
    send()  # once more, which changes nothing
    signals.exit_now(signals.EXIT_STATUSES[number], signals.describe_stop(stop))
send(); time.sleep(0.5)  # after its end, a command's status stands
print("done")
"""


def _python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=50,
                          check=False, **options)  # fmt: skip


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("busy", BODIES)
def test_a_signal_is_never_lost(busy, number):
    done = _python("-c", PROCESS, str(int(number)), BODIES[busy])
    assert (done.returncode, done.stderr, done.stdout) == (STATUS[number], LINE[number], "")


@pytest.mark.parametrize("number", STATUS)
def test_what_cleans_up_is_not_interrupted(number, tmp_path):
    """Though the signal comes again and again: only what has swallowed it is."""
    body = """
try:
    send(); time.sleep(60)
finally:
    for _ in range(8):
        time.sleep(0.1)
        try:
            send(); raise KeyError
        except KeyError:
            time.sleep(0.01)
    Path(sys.argv[3]).touch()"""
    done = _python("-c", PROCESS, str(int(number)), body, str(tmp_path / "cleaned"))
    assert (done.returncode, done.stderr) == (STATUS[number], LINE[number])
    assert (tmp_path / "cleaned").exists()


def test_asked_it_goes_on_until_it_is_asked_again():
    body = """
seen = []
def ask(number):
    seen.append(number)
    return len(seen) < 2
with signals.ask_on_signals(ask):
    send(); time.sleep(0.5)
    assert seen == [number]
    send(); time.sleep(60)"""
    done = _python("-c", PROCESS, str(int(signal.SIGINT)), body)
    said = LINE[signal.SIGINT].replace("interrupted", "interrupted, not saved")
    assert (done.returncode, done.stderr) == (130, said)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_after_the_command_changes_nothing(number):
    done = _python("-c", PROCESS, str(int(number)), "pass")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")


def test_the_library_leaves_signals_alone():
    script = """
import signal, sys
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook
import undo_jax.__main__, undo_jax.runtime.signals
assert "jax" not in sys.modules and "numpy" not in sys.modules
with undo_jax.runtime.signals.raise_on_signals(*undo_jax.runtime.signals.EXIT_STATUSES):
    assert signal.getsignal(signal.SIGINT) is not before[0][0]
assert before == ([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
                  sys.unraisablehook)
"""
    done = _python("-c", script)
    assert (done.returncode, done.stderr) == (0, "")


EXPERIMENT = """
import gc, os, signal, time
gc.callbacks.append(lambda *_: (gc.callbacks.clear(), os.kill(os.getpid(), signal.{}),
                                time.sleep(0.1)))
gc.collect()
time.sleep(60)
"""


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_in_the_first_seconds_ends_the_command(number, tmp_path):
    """While it imports, and in a garbage collection while it reads its experiment."""
    (tmp_path / "mine.py").write_text(EXPERIMENT.format(number.name))
    command = [sys.executable, "-m", "undo_jax", "run", "mine.py"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]  # fmt: skip
    try:
        for process in running[1:]:
            _until_it_watches(process)
            time.sleep(0.3 * running.index(process))
            process.send_signal(number)
        for process in running:
            out, said = process.communicate(timeout=120)
            assert (process.returncode, said, out) == (STATUS[number], LINE[number], "")
    finally:
        for process in running:
            process.kill()


def _until_it_watches(process):
    """Wait for its handlers, for Python itself has to start first."""
    deadline, mask = time.monotonic() + 60, (1 << signal.SIGTERM - 1)
    while not int(_status(process, "SigCgt"), 16) & mask:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)


def _status(process, field):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


@pytest.mark.parametrize("number", STATUS)
def test_a_command_that_saves_nothing_ends_soon_and_does_not_go_on(number):
    """Also in native code: a compiler is not waited for."""
    body = """
signals.expect_no_saves()
lock = (ctypes.c_char * 64)()
ctypes.CDLL(None).pthread_mutex_lock(lock)
threading.Timer(0.2, send).start()
ctypes.CDLL(None).pthread_mutex_lock(lock)"""
    started = time.monotonic()
    words = [sys.executable, "-c", PROCESS, str(int(number)), body]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)
    said = LINE[number].replace("; the same command goes on", "")
    assert (done.returncode, done.stderr) == (STATUS[number], said)
    assert time.monotonic() - started < 30  # not the grace of a command that saves


def test_only_what_resumes_says_that_it_goes_on(monkeypatch, capsys, tmp_path):
    from undo_jax.cli import main as cli

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("experiment = None")
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.setattr("undo_jax.cli.devices.join", stopped)
    for words in ("import-hf a b", "export-hf a b"):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words.split()])
        assert (stop.value.code, capsys.readouterr().err) == (130, "interrupted\n")
    made = type("Made", (), {"sinks": (), "scores": (), "name": "mine"})()
    monkeypatch.setattr("undo_jax.cli.commands.run.load_with_flags", lambda *_: made)
    monkeypatch.setattr("dataclasses.replace", lambda made, **_: made)
    monkeypatch.setattr("undo_jax.runner.dry_run.plan_run", stopped)
    monkeypatch.setattr("undo_jax.runner.experiment.run", stopped)
    for more, said in (("--plan", ""), ("", "; the same command goes on")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", "mine.py", *more.split()])
        assert (stop.value.code, capsys.readouterr().err) == (130, f"interrupted{said}\n")


def test_the_next_command_of_a_process_saves_again():
    from undo_jax.runtime import signals

    with signals.raise_on_signals():
        signals.expect_no_saves()
        assert signals.describe_stop(KeyboardInterrupt()) == "interrupted"
    with signals.raise_on_signals():
        assert signals.describe_stop(KeyboardInterrupt()) == "interrupted; the same command goes on"

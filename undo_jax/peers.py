"""The processes of one job: when one of them is gone, the others end, in one line that says which.

JAX notices after a minute or more, or aborts. So every process holds a connection to process 0,
which tells the others. A process that ends says so first; one that dies does not, and the kernel
closes its connection; a machine that vanishes no longer answers the kernel's probes. A process that
is slow, or even stopped, is not dead.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from undo_jax import signals
from undo_jax.signals import INTERRUPTED, PREEMPTED

GRACE = 5  # seconds from a process's end to that of the others, if they do not end by themselves
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a machine vanishes: 40 s
DELAY = 1  # seconds that native code's words wait for what explains them
PLACES = 1024  # bytes for the addresses of process 0
HERE = "all are here"
GOES_ON = "the same command on all goes on from the last save"

_connections: dict[int, socket.socket] = {}  # of process 0 to all others, or of another one to it
_ends: dict[int, int] = {}  # the exit statuses of those that have said theirs
_count = 1  # processes


def meet(coordinator: str, process: int, processes: int, patience: float) -> None:
    """Wait until all processes have started, at the address where JAX listens later.

    Ends those that have where others do not come in time. Raises ConnectionError where process 0
    cannot listen there, or is not there.
    """
    host, _, port = coordinator.rpartition(":")
    if process:
        _watch(0, _reach([(host.strip("[]"), int(port))], process, processes, patience), processes)
        return
    try:
        server = _listen(int(port))
    except OSError as error:
        raise ConnectionError(
            f"cannot listen at {coordinator} ({error}): give a free port"
        ) from error
    deadline = time.monotonic() + patience
    with server:
        while missing := sorted(set(range(1, processes)) - set(_connections)):
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                _welcome(server, processes)
            except TimeoutError:
                names = ", ".join(map(str, missing))
                _end(PREEMPTED, f"process {names} of {processes} did not come in {patience} s: "
                                "start them together")  # fmt: skip
    for connection in list(_connections.values()):
        _tell(connection, HERE)


def find() -> None:
    """Watch the processes that JAX has found by itself."""
    processes, here = jax.process_count(), jax.process_index() == 0
    if processes == 1:
        return
    server = _listen(0) if here else None
    text = " ".join(_addresses(server.getsockname()[1])) if server else ""
    padded = np.frombuffer(text.encode().ljust(PLACES)[:PLACES], np.uint8)
    told = multihost_utils.broadcast_one_to_all(padded)
    if server:
        return _start(_welcome_all, server, processes)
    places = [place.rpartition(":") for place in bytes(np.asarray(told)).decode().split()]
    with suppress(ConnectionError):  # JAX alone watches those that a firewall parts
        reached = _reach([(h, int(p)) for h, _, p in places], jax.process_index(), processes, 5)
        _watch(0, reached, processes)


def explain(error: BaseException) -> None:
    """What fails here may fail because another process has gone, and that is said instead."""
    deadline = time.monotonic() + 2
    while _connections and not isinstance(error, SystemExit) and time.monotonic() < deadline:
        if gone := {process: status for process, status in _ends.items() if status}:
            _follow(*gone.popitem())
        time.sleep(0.05)


def bye(status: int) -> None:
    """Say that this process ends; process 0, without which JAX aborts the others, does so last."""
    for connection in list(_connections.values()):
        _tell(connection, f"bye {status}")
    deadline = time.monotonic() + GRACE + 1
    while status and 0 not in _connections and _connections and time.monotonic() < deadline:
        time.sleep(0.01)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _addresses(port: int) -> list[str]:
    """Where process 0 may be reached, as HOST:PORT."""
    name = socket.gethostname()
    with suppress(OSError):
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys([f"{name}:{port}", *(f"{i[4][0]}:{port}" for i in found)]))
    return [f"{name}:{port}"]


def _reach(
    places: list[tuple[str, int]], process: int, processes: int, patience: float
) -> socket.socket:
    """A connection to process 0, once it lets all in."""
    deadline, reason = time.monotonic() + patience, ""
    while True:
        for place in places:
            try:
                connection = socket.create_connection(place, timeout=5)
                _tell(connection, f"undo-jax {process} {processes}")
                connection.settimeout(max(deadline - time.monotonic(), 1))
                said = connection.recv(len(HERE) + 1, socket.MSG_PEEK).decode()
                if said == f"{HERE}\n" or said.startswith("end "):
                    return connection
                reason = "it does not answer"
            except OSError as error:
                reason = str(error)
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"no coordinator at {':'.join(map(str, places[-1]))} in {patience} s ({reason}): "
                "check the address, and that process 0 has started"
            )
        time.sleep(0.2)


def _welcome(server: socket.socket, processes: int, word: str = "") -> None:
    """Let one process in; whoever else comes to this port is sent away."""
    connection = server.accept()[0]
    with suppress(OSError, ValueError):
        connection.settimeout(5)
        name, process, count = connection.recv(64).decode().split()
        if name == "undo-jax" and int(count) == processes and 0 < int(process) < processes:
            if word:
                _tell(connection, word)
            return _watch(int(process), connection, processes)
    connection.close()


def _welcome_all(server: socket.socket, processes: int) -> None:
    while True:
        _welcome(server, processes, HERE)


def _watch(process: int, connection: socket.socket, processes: int) -> None:
    """Hear from now on what the process says, and when it is gone."""
    global _count
    if not _connections:
        _outlive_aborts()
    _count = processes
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _connections[process] = connection
    _start(_hear, process, connection)


def _hear(process: int, connection: socket.socket) -> None:
    with suppress(OSError), connection.makefile() as lines:
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "bye":
                _ends[process] = int(rest)
            elif word == "end":
                status, _, said = rest.partition(" ")
                _end(int(status), said)
    if process not in _ends:
        _end(PREEMPTED, f"process {process} of {_count} died; {GOES_ON}")
    _connections.pop(process)
    if _ends[process]:
        time.sleep(GRACE)
        _follow(process, _ends[process])


def _follow(process: int, status: int) -> None:
    """End because another process has ended: as it did, or so that a scheduler starts all again."""
    said = f"process {process} of {_count} has ended with status {status}"
    if status in (PREEMPTED, INTERRUPTED):
        _end(PREEMPTED, f"{said}; {GOES_ON}")
    _end(status, f"undo-jax: {said}: see what it says")


def _end(status: int, line: str) -> None:
    """End this process, and the others with it."""
    for connection in list(_connections.values()):
        _tell(connection, f"end {status} {line}")
    signals.end(status, line)


def _tell(connection: socket.socket, line: str) -> None:
    with suppress(OSError):
        connection.sendall(f"{line}\n".encode())


def _start(work: Callable[..., None], *given: Any) -> None:
    threading.Thread(target=work, args=given, daemon=True).start()


def _outlive_aborts() -> None:
    """Be there to say why where JAX aborts, which it does once process 0 is gone.

    An abort waits for some seconds first. What native code prints comes a second late, and not at
    all if the process has ended by then.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(
        signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p)
    )  # of 6 seconds, its number
    reader, writer = os.pipe()
    stderr = os.dup(2)
    sys.stderr = os.fdopen(stderr, "w", buffering=1, errors="backslashreplace")
    os.dup2(writer, 2)

    def pass_on():
        while said := os.read(reader, 2**16):
            time.sleep(DELAY)
            with suppress(OSError):
                os.write(stderr, said)

    _start(pass_on)

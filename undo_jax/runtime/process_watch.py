"""The processes of one job: when one dies, the others end, with one line that says which.

JAX notices after a minute or more, or aborts. So every process holds a TCP connection to process 0,
which informs the others. A process that ends sends a message first. One that dies does not: the
kernel closes its connection. A vanished machine stops answering TCP keepalive probes. A process
that is slow, or stopped in a debugger, still answers them.
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

from undo_jax.runtime import signals
from undo_jax.runtime.signals import INTERRUPTED, PREEMPTED

GRACE = 5  # seconds after one process ends until it makes the others end
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a machine vanishes: 40 s
DELAY = 1  # seconds by which native code's output is delayed, so that our line comes first
PLACES = 1024  # bytes for the addresses of process 0
HERE = "all are here"
GOES_ON = "the same command on all goes on from the last save"

_connections: dict[int, socket.socket] = {}  # from process 0 to all others, or from another to 0
_ends: dict[int, int] = {}  # exit statuses that processes have sent
_count = 1  # number of processes
_leaving = threading.Event()  # this process has sent its own


def connect_processes(coordinator: str, process: int, processes: int, patience: float) -> None:
    """Wait until all processes have connected to process 0, at the address that JAX uses later.

    If some do not start in time, ends those that have. Raises ConnectionError where process 0
    cannot listen at the address, or does not answer there.
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


def connect_found_processes() -> None:
    """Connect the processes that JAX has found, at an address that process 0 broadcasts."""
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
    with suppress(ConnectionError):  # behind a firewall only JAX watches them
        reached = _reach([(h, int(p)) for h, _, p in places], jax.process_index(), processes, 5)
        _watch(0, reached, processes)


def exit_if_another_failed(error: BaseException) -> None:
    """If this error may come from another process's failure, end with that one's line instead."""
    deadline = time.monotonic() + 2
    while _connections and not isinstance(error, SystemExit) and time.monotonic() < deadline:
        if gone := {process: status for process, status in _ends.items() if status}:
            _follow(*gone.popitem())
        time.sleep(0.05)


def announce_exit(status: int) -> None:
    """Send the others this process's status; process 0, without which JAX aborts, ends last."""
    _leaving.set()
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
    """Addresses at which process 0 may be reached, as HOST:PORT."""
    name = socket.gethostname()
    with suppress(OSError):
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys([f"{name}:{port}", *(f"{i[4][0]}:{port}" for i in found)]))
    return [f"{name}:{port}"]


def _reach(
    places: list[tuple[str, int]], process: int, processes: int, patience: float
) -> socket.socket:
    """Connect to process 0, and wait until all processes have."""
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
    """Accept one process's connection; any other client of this port is closed."""
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
    """From now on receive the process's messages, and notice its end."""
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
                _start(_follow, process, int(rest), GRACE)
            elif word == "end":
                status, _, said = rest.partition(" ")
                _end(int(status), said)
    if process not in _ends:
        _end(PREEMPTED, f"process {process} of {_count} died; {GOES_ON}")
    _connections.pop(process)


def _follow(process: int, status: int, seconds: float = 0) -> None:
    """End because another process has: with its status, or 75 if it was stopped."""
    time.sleep(seconds)
    if not status:
        return
    said = f"process {process} of {_count} has ended with status {status}"
    if status in (PREEMPTED, INTERRUPTED):
        _end(PREEMPTED, f"{said}; {GOES_ON}")
    _end(status, f"undo-jax: {said}: see what it says")


def _end(status: int, line: str) -> None:
    """End this process; process 0 also makes the others end."""
    if _leaving.is_set():
        return
    if 0 not in _connections:
        for connection in list(_connections.values()):
            _tell(connection, f"end {status} {line}")
    signals.exit_now(status, line)


def _tell(connection: socket.socket, line: str) -> None:
    with suppress(OSError):
        connection.sendall(f"{line}\n".encode())


def _start(work: Callable[..., None], *given: Any) -> None:
    threading.Thread(target=work, args=given, daemon=True).start()


def _outlive_aborts() -> None:
    """Delay JAX's abort, which follows the end of process 0, so that our line can be printed.

    An abort (SIGABRT) first sleeps for some seconds. What native code prints appears a second late,
    and not at all if the process has ended by then.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(
        signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p)
    )  # the handler's argument, SIGABRT = 6, is the seconds to sleep
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


def agree_on(values: Any) -> np.ndarray:
    """Process 0's values, on every process."""
    values = np.asarray(values)
    if jax.process_count() > 1 and values.size:
        values = np.asarray(multihost_utils.broadcast_one_to_all(values))
    return values

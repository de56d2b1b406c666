"""Ends all processes of a job when one of them dies, with one line that names it.

Every process holds a TCP connection to process 0, which informs the others. A process that ends
sends its exit status first. One that dies does not: the kernel closes its connection. A vanished
machine stops answering TCP keepalive probes. A process that is slow, or stopped in a debugger,
still answers them. Why JAX's own heartbeats do not suffice: docs/decisions/0016-process-watch.md.
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

from undo_jax.runtime import signals
from undo_jax.runtime.processes import agree_on
from undo_jax.runtime.signals import INTERRUPTED, PREEMPTED

GRACE = 5  # seconds after one process ends until it makes the others end
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a machine vanishes: 40 s
DELAY = 1  # seconds by which native code's output is delayed, so that our line comes first
ADDRESS_BYTES = 1024  # for the addresses of process 0
ALL_CONNECTED = "all connected"
RESUMES = "the same command on all goes on from the last save"

_connections: dict[int, socket.socket] = {}  # from process 0 to all others, or from another to 0
_exit_statuses: dict[int, int] = {}  # that other processes have sent
_process_count = 1
_is_exiting = threading.Event()  # this process has sent its own status


def connect_processes(coordinator: str, process: int, processes: int, patience: float) -> None:
    """Waits until all processes have connected to process 0, at the address that JAX uses later.

    If some do not start in time, ends those that have.

    Args:
        coordinator: HOST:PORT of process 0.
        process: the index of this process.
        processes: the number of processes.
        patience: seconds to wait for the others.

    Raises:
        ConnectionError: if process 0 cannot listen at the address, or does not answer there.
    """
    host, _, port = coordinator.rpartition(":")
    if process:
        connection = _connect([(host.strip("[]"), int(port))], process, processes, patience)
        _watch(0, connection, processes)
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
                _accept(server, processes)
            except TimeoutError:
                names = ", ".join(map(str, missing))
                _end_job(
                    PREEMPTED,
                    f"process {names} of {processes} did not connect within {patience} s: start "
                    "all processes together",
                )
    for connection in list(_connections.values()):
        _send(connection, ALL_CONNECTED)


def connect_found_processes() -> None:
    """Connects the processes that JAX has found, at an address that process 0 broadcasts."""
    processes = jax.process_count()
    if processes == 1:
        return
    server = _listen(0) if jax.process_index() == 0 else None
    text = " ".join(_own_addresses(server.getsockname()[1])) if server else ""
    padded = np.frombuffer(text.encode().ljust(ADDRESS_BYTES)[:ADDRESS_BYTES], np.uint8)
    shared_text = bytes(agree_on(padded)).decode()
    if server:
        return _start_thread(_accept_all, server, processes)
    parts = [address.rpartition(":") for address in shared_text.split()]
    addresses = [(host, int(port)) for host, _, port in parts]
    with suppress(ConnectionError):  # behind a firewall only JAX watches them
        _watch(0, _connect(addresses, jax.process_index(), processes, 5), processes)


def exit_if_another_failed(error: BaseException) -> None:
    """Ends this process if another one has failed, which may be the cause of `error`."""
    deadline = time.monotonic() + 2
    while _connections and not isinstance(error, SystemExit) and time.monotonic() < deadline:
        if failed := {process: status for process, status in _exit_statuses.items() if status}:
            _exit_after(*failed.popitem())
        time.sleep(0.05)


def announce_exit(status: int) -> None:
    """Sends the others this process's exit status; process 0, without which JAX aborts, waits."""
    _is_exiting.set()
    for connection in list(_connections.values()):
        _send(connection, f"bye {status}")
    deadline = time.monotonic() + GRACE + 1
    while status and 0 not in _connections and _connections and time.monotonic() < deadline:
        time.sleep(0.01)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _own_addresses(port: int) -> list[str]:
    """Returns addresses at which process 0 may be reached, as HOST:PORT."""
    name = socket.gethostname()
    with suppress(OSError):
        entries = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys([f"{name}:{port}", *(f"{e[4][0]}:{port}" for e in entries)]))
    return [f"{name}:{port}"]


def _connect(
    addresses: list[tuple[str, int]], process: int, processes: int, patience: float
) -> socket.socket:
    """Connects to process 0 at one of its addresses, and waits until all processes have."""
    deadline, reason = time.monotonic() + patience, ""
    while True:
        for address in addresses:
            try:
                connection = socket.create_connection(address, timeout=5)
                _send(connection, f"undo-jax {process} {processes}")
                connection.settimeout(max(deadline - time.monotonic(), 1))
                reply = connection.recv(len(ALL_CONNECTED) + 1, socket.MSG_PEEK).decode()
                if reply == f"{ALL_CONNECTED}\n" or reply.startswith("end "):
                    return connection
                reason = "it does not answer"
            except OSError as error:
                reason = str(error)
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"no coordinator at {':'.join(map(str, addresses[-1]))} in {patience} s "
                f"({reason}): check the address, and that process 0 has started"
            )
        time.sleep(0.2)


def _accept(server: socket.socket, processes: int, reply: str = "") -> None:
    """Accepts the connection of one process; any other client of this port is closed."""
    connection = server.accept()[0]
    with suppress(OSError, ValueError):
        connection.settimeout(5)
        name, process, count = connection.recv(64).decode().split()
        if name == "undo-jax" and int(count) == processes and 0 < int(process) < processes:
            if reply:
                _send(connection, reply)
            return _watch(int(process), connection, processes)
    connection.close()


def _accept_all(server: socket.socket, processes: int) -> None:
    while True:
        _accept(server, processes, ALL_CONNECTED)


def _watch(process: int, connection: socket.socket, processes: int) -> None:
    """From now on receives the messages of a process, and notices its end."""
    global _process_count
    if not _connections:
        _delay_aborts()
    _process_count = processes
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _connections[process] = connection
    _start_thread(_receive, process, connection)


def _receive(process: int, connection: socket.socket) -> None:
    """Handles a process's messages, `bye STATUS` and `end STATUS LINE`, until it is gone."""
    with suppress(OSError), connection.makefile() as lines:
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "bye":
                _exit_statuses[process] = int(rest)
                _start_thread(_exit_after, process, int(rest), GRACE)
            elif word == "end":
                status, _, message = rest.partition(" ")
                _end_job(int(status), message)
    if process not in _exit_statuses:
        _end_job(PREEMPTED, f"process {process} of {_process_count} died; {RESUMES}")
    _connections.pop(process)


def _exit_after(process: int, status: int, seconds: float = 0) -> None:
    """Ends the job because a process has failed: with its status, or 75 if it was stopped."""
    time.sleep(seconds)
    if not status:
        return
    message = f"process {process} of {_process_count} has ended with status {status}"
    if status in (PREEMPTED, INTERRUPTED):
        _end_job(PREEMPTED, f"{message}; {RESUMES}")
    _end_job(status, f"undo-jax: {message}: see its output")


def _end_job(status: int, line: str) -> None:
    """Ends this process; process 0 also makes the others end."""
    if _is_exiting.is_set():
        return
    if 0 not in _connections:
        for connection in list(_connections.values()):
            _send(connection, f"end {status} {line}")
    signals.exit_now(status, line)


def _send(connection: socket.socket, line: str) -> None:
    with suppress(OSError):
        connection.sendall(f"{line}\n".encode())


def _start_thread(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _delay_aborts() -> None:
    """Delays JAX's abort, which follows the end of process 0, so that our line can be printed.

    An abort (SIGABRT) first sleeps for some seconds. The output of native code appears a second
    late, and not at all if the process has ended by then.
    """
    # the C handler of SIGABRT becomes sleep(6): its argument is the signal's number, 6
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    # Python keeps writing to the real stderr; native code writes to a pipe that a thread copies
    reader, writer = os.pipe()
    stderr = os.dup(2)
    sys.stderr = os.fdopen(stderr, "w", buffering=1, errors="backslashreplace")
    os.dup2(writer, 2)

    def copy_output():
        while output := os.read(reader, 2**16):
            time.sleep(DELAY)
            with suppress(OSError):
                os.write(stderr, output)

    _start_thread(copy_output)

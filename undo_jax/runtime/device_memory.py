"""The memory of the host and of a device, and an error for arrays that cannot fit into it."""

import math
import os
from pathlib import Path

from jax.sharding import Mesh
from jax.stages import Compiled

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def host_bytes() -> int:
    """Returns the bytes of memory of this machine, or of the container if that has a limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def device_bytes(mesh: Mesh) -> float:
    """Returns the bytes for arrays on each device, inf if no device reports them.

    CPU devices share the host's memory.
    """
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        return host_bytes() / len(devices)
    return min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in devices)


def check_fits(name: str, needed: float, available: float, memory: str = "memory") -> None:
    """Raises ValueError if `name` needs more bytes of this kind of memory than are available."""
    if needed > available:
        raise ValueError(
            f"{name}: needs at least {format_bytes(needed)} of {memory}, but only "
            f"{format_bytes(available)} are available: make it smaller"
        )


def check_program(name: str, program: Compiled, mesh: Mesh) -> None:
    """Raises ValueError if a compiled program needs more memory than each device has."""
    if memory := program.memory_analysis():
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        check_fits(name, needed, device_bytes(mesh), "each device's memory")


def format_bytes(size: float) -> str:
    """Formats bytes in binary units, e.g. 1.50 GiB."""
    power = min(max(int(math.log2(max(size, 1))) // 10, 1), len(UNITS))
    return f"{size / 1024**power:.2f} {UNITS[power - 1]}"

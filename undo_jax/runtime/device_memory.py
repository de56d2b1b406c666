"""How much memory there is, and an error for what cannot fit into it."""

import math
import os
from pathlib import Path

from jax.sharding import Mesh

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def host_bytes() -> int:
    """Bytes of memory of this machine, or of the container."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)


def device_bytes(mesh: Mesh) -> float:
    """Bytes for arrays on each device; CPU devices share the host's. inf if none reports any."""
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        return host_bytes() / len(devices)
    return min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in devices)


def check_fits(what: str, needed: float, there: float, where: str = "memory") -> None:
    """Raises ValueError where `needed` bytes are more than those available, `there`."""
    if needed > there:
        raise ValueError(
            f"{what}: needs at least {format_bytes(needed)} of {where}, and there are {format_bytes(there)}: make "
            "it smaller"
        )


def format_bytes(size: float) -> str:
    """Bytes in binary units, e.g. 1.50 GiB."""
    power = min(max(int(math.log2(max(size, 1))) // 10, 1), len(UNITS))
    return f"{size / 1024**power:.2f} {UNITS[power - 1]}"

"""TPU chips and the slices they come in, and NVIDIA GPUs, of which a node has several."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from undo_jax.fit import nvidia
from undo_jax.ops.gpu import GPUS

GIB = 2**30
SHARE = 0.75  # of a GPU's memory that JAX uses: the default of XLA_PYTHON_CLIENT_MEM_FRACTION


@dataclass(frozen=True)
class Chip:
    """What one chip, or GPU, can do. The cores of v4 and v5p work as one (megacore)."""

    flops: float  # bf16, per second
    hbm: float  # bytes that a program can use; libtpu, or JAX, keeps the rest
    memory: float  # bytes per second to and from HBM
    links: float  # bytes per second that a chip receives over all its links, one direction only
    topologies: tuple[str, ...]
    devices: tuple[str, ...]  # prefixes of a JAX device's `device_kind`
    platform: str = "tpu"
    parts: tuple[str, str, str] = ("MXU", "HBM", "ICI")  # names of compute, memory and interconnect
    cores: int = 1  # accelerator types count cores: v5p-64 has 32 chips
    options: Mapping[str, Any] = field(default_factory=dict)  # options for `get_topology_desc`
    flags: Mapping[str, Any] = field(default_factory=dict)  # of XLA, needed when the chip is absent


def _gpu(device: str, links: float) -> Chip:
    return Chip(
        flops=GPUS[device].flops,
        hbm=SHARE * nvidia.CAPACITY[device],
        memory=GPUS[device].memory,
        links=links,
        topologies=("1", "2", "4", "8"),
        devices=(device,),
        platform="cuda",
        parts=("tensor cores", "HBM", "NVLink"),
        options={"target_config": nvidia.target(device)},
        flags=nvidia.FLAGS,
    )


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

# flops, memory, links and topologies: the tables of cloud.google.com/tpu/docs/v4, /v5e, /v5p and
# /v6e; links of v4, which has six of 50 GB/s: arXiv 2304.01433. hbm: what libtpu says it has when
# it refuses a program, the least of 0.0.42 and 0.0.50; the capacities in Google's tables are 32,
# 16, 95 and 32 GB. GPUs: SXM, by NVIDIA's data sheets, with NVLinks of 25 GB/s each way: 12 of
# A100, 18 of H100 and H200.
CHIPS = {
    "v4": Chip(
        flops=275e12,
        hbm=30.75 * GIB,
        memory=1200e9,
        links=300e9,
        topologies=("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        devices=("TPU v4",),
        cores=2,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        flops=197e12,
        hbm=15.75 * GIB,
        memory=819e9,
        links=400e9 / 2,
        topologies=FLAT,
        devices=("TPU v5 lite", "TPU v5e"),
    ),
    "v5p": Chip(
        flops=459e12,
        hbm=95.73 * GIB,
        memory=2765e9,
        links=1200e9 / 2,
        topologies=("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        devices=("TPU v5",),
        cores=2,
    ),
    "v6e": Chip(
        flops=918e12,
        hbm=31.24 * GIB,
        memory=1638e9,
        links=800e9 / 2,
        topologies=FLAT,
        devices=("TPU v6 lite", "TPU v6e"),
    ),
    "a100": _gpu("NVIDIA A100", links=300e9),  # with 80 GB
    "h100": _gpu("NVIDIA H100", links=450e9),
    "h200": _gpu("NVIDIA H200", links=450e9),
}


class Slice(NamedTuple):
    """A part of a pod, or of a node of GPUs."""

    kind: str  # of its chips
    topology: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return count(self.topology)

    def __str__(self):
        return f"{self.kind}:{self.topology}"


def count(topology: str) -> int:
    """Number of chips, e.g. 16 for 4x4, or 8 for 8."""
    return math.prod(int(side) for side in topology.split("x"))


def find(name: str) -> Slice:
    """The slice that a topology (v5e:4x4, h100:8) or an accelerator type (v5e-16, v5p-64) names.

    An accelerator type counts cores where a chip has two. Raises ValueError for an unknown one.
    """
    kind, mark, rest = re.sub("^v5litepod", "v5e", name).partition(":" if ":" in name else "-")
    if kind not in CHIPS or not mark:
        raise ValueError(
            f"unknown topology {name!r}: give e.g. v5e:4x4, v5e-16 or h100:8, of {', '.join(CHIPS)}"
        )
    names = {
        topology if mark == ":" else str(CHIPS[kind].cores * count(topology)): topology
        for topology in CHIPS[kind].topologies
    }
    if rest not in names:
        choices = ", ".join(names if mark == ":" else (f"{kind}-{cores}" for cores in names))
        raise ValueError(f"unknown topology {name!r}: {kind} has {choices}")
    return Slice(kind, names[rest])


def roomier(place: Slice) -> list[str]:
    """Kinds of chips on the same platform with at least 1 GiB more memory."""
    least, platform = place.chip.hbm + GIB, place.chip.platform
    return [k for k, chip in CHIPS.items() if chip.hbm >= least and chip.platform == platform]


def of_device(kind: str) -> Chip | None:
    """The chip that a JAX device of this kind is; None for one that is not known."""
    by_device = {name: chip for chip in CHIPS.values() for name in chip.devices}
    names = [name for name in by_device if kind.startswith(name)]
    return by_device[max(names, key=len)] if names else None

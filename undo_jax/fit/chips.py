"""TPU chips and the slices they come in."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What one chip can do. A device is a chip: the cores of v4 and v5p work as one (megacore)."""

    flops: float  # bf16, a second
    hbm: float  # bytes a program can have; libtpu keeps the rest of the capacity to itself
    memory: float  # bytes a second to and from HBM
    links: float  # bytes a second that reach a chip over all its links, half of the two directions
    topologies: tuple[str, ...]
    cores: int = 1  # accelerator types count cores: v5p-64 has 32 chips
    options: Mapping[str, Any] = field(default_factory=dict)  # what libtpu wants to know besides


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

# flops, memory, links and topologies: the tables of cloud.google.com/tpu/docs/v4, /v5e, /v5p and
# /v6e; links of v4, which has six of 50 GB/s: arXiv 2304.01433. hbm: what libtpu 0.0.42 says it has
# when it refuses a program; the capacities in Google's tables are 32, 16, 95 and 32 GB.
CHIPS = {
    "v4": Chip(
        flops=275e12,
        hbm=30.75 * GIB,
        memory=1200e9,
        links=300e9,
        topologies=("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        cores=2,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        flops=197e12, hbm=15.75 * GIB, memory=819e9, links=400e9 / 2, topologies=FLAT
    ),
    "v5p": Chip(
        flops=459e12,
        hbm=95.74 * GIB,
        memory=2765e9,
        links=1200e9 / 2,
        topologies=("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        cores=2,
    ),
    "v6e": Chip(
        flops=918e12, hbm=31.25 * GIB, memory=1638e9, links=800e9 / 2, topologies=FLAT
    ),
}  # fmt: skip


class Slice(NamedTuple):
    """A part of a pod."""

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
    """Chips, e.g. 16 of 4x4."""
    return math.prod(int(side) for side in topology.split("x"))


def find(name: str) -> Slice:
    """The slice that a topology (v5e:4x4) or an accelerator type (v5e-16, v5p-64) names.

    An accelerator type counts cores where a chip has two. Raises ValueError for an unknown one.
    """
    kind, mark, rest = re.sub("^v5litepod", "v5e", name).partition(":" if ":" in name else "-")
    if kind not in CHIPS or not mark:
        raise ValueError(f"unknown topology {name!r}: give e.g. v5e:4x4 or v5e-16, of {known()}")
    chip = CHIPS[kind]
    for topology in chip.topologies:
        if rest == (topology if mark == ":" else str(chip.cores * count(topology))):
            return Slice(kind, topology)
    choices = ", ".join(
        topology if mark == ":" else f"{kind}-{chip.cores * count(topology)}"
        for topology in chip.topologies
    )
    raise ValueError(f"unknown topology {name!r}: {kind} has {choices}")


def known() -> str:
    return ", ".join(CHIPS)

"""How fast a step can be at best."""

from typing import NamedTuple

from undo_jax.fit.chips import Chip
from undo_jax.fit.costs import Cost, entry_frame, parts


class Roofline(NamedTuple):
    """Seconds that each part of a chip is busy in a step, were it always at its peak."""

    mxu: float  # or tensor cores
    hbm: float
    ici: float  # or NVLink

    @property
    def seconds(self) -> float:
        """Of a step: those of its busiest part, as if all overlapped perfectly."""
        return max(self)

    def bound(self, chip: Chip) -> str:
        """The name of the busiest part."""
        return max(zip(self, chip.parts, strict=True))[1]


def roofline(cost: Cost, chip: Chip) -> Roofline:
    """Lower bounds of time: no padding, no waiting, traffic spread evenly over all links."""
    received = sum(cost.collectives.values())
    return Roofline(cost.flops / chip.flops, cost.memory / chip.memory, received / chip.links)


def serial(text: str, chip: Chip) -> float:
    """Seconds of a step whose instructions follow one another, each at the chip's peak.

    An instruction takes as long as its FLOPs or its HBM traffic, whichever is more; collectives
    are hidden behind others. `text` is optimised HLO.
    """
    return sum(
        times * max(cost.flops / chip.flops, cost.memory / chip.memory)
        for times, _, cost in parts(entry_frame(text))
    )

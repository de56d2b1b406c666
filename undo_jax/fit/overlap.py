"""Finds the collectives of a compiled program that overlap with matrix products.

libtpu prints a program in the order in which a core runs it. An asynchronous collective is hidden
if a product, of XLA or of a kernel, stands between its start and its end. A collective that is a
single instruction keeps the core waiting.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from undo_jax.fit import costs
from undo_jax.fit.hlo import COLLECTIVES, Instruction
from undo_jax.fit.loops import Frame

FUSED = "async-collective-start", "async-collective-done"  # names of libtpu's fusions
PASSING = ("bitcast", "copy", "get-tuple-element", "opt-barrier", "tuple")


class Overlap(NamedTuple):
    """Bytes that a device receives in a step, by the kind of collective."""

    hidden: Mapping[str, float]  # of those with a product between their start and their end
    total: Mapping[str, float]

    @property
    def share(self) -> float:
        """The hidden share of all bytes; 1 if there are none."""
        total = sum(self.total.values())
        return sum(self.hidden.values()) / total if total else 1.0


def overlap(text: str) -> Overlap:
    """Returns the overlap of optimised HLO, loops counted once per iteration.

    Raises ValueError for text whose instructions are in no order.
    """
    if "is_scheduled=true" not in text.partition("\n")[0]:
        raise ValueError("this HLO is not scheduled: give the text of a compiled program")
    hidden, total = defaultdict[str, float](float), defaultdict[str, float](float)
    for kind, received, has_product in _collectives(costs.entry_frame(text), 1):
        total[kind] += received
        hidden[kind] += received * has_product
    return Overlap(dict(hidden), dict(total))


def _collectives(frame: Frame, times: int) -> Iterator[tuple[str, float, bool]]:
    """Yields the collectives of a computation and of all that it calls.

    Each with its kind, the bytes received in all iterations of its loop, and whether a product runs
    between its start and its end.
    """
    lines = list(frame.scope.values())
    for position, op in enumerate(lines):
        if op.opcode in ("while", "call"):
            repeats = frame.trips(op) if op.opcode == "while" else 1
            yield from _collectives(frame.called(op)[0], times * repeats)
        elif collectives := costs.op_cost(frame, op).collectives:
            between = lines[position + 1 : _end_position(lines, position)]
            has_product = any(costs.op_cost(frame, later_op).flops for later_op in between)
            for kind, size in collectives.items():
                yield kind, times * size, has_product


def _end_position(lines: Sequence[Instruction], position: int) -> int:
    """Returns the position at which a collective ends; the next one if none starts here."""
    if not _is_started(lines[position]):
        return position + 1
    derived = {lines[position].name}
    for later, op in enumerate(lines[position + 1 :], position + 1):
        if derived.isdisjoint(op.operands):
            continue
        if op.opcode.endswith("-done") or op.name.startswith(FUSED[1]):
            return later
        if op.opcode in PASSING or op.opcode in ("async-update", "fusion"):
            derived.add(op.name)
    return len(lines)


def _is_started(op: Instruction) -> bool:
    fused = op.opcode == "fusion" and op.name.startswith(FUSED[0])
    return fused or op.opcode in {f"{kind}-start" for kind in (*COLLECTIVES, "async", "call")}

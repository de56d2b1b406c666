"""Which collectives of a compiled program run beside products, by the order of its instructions.

libtpu prints a program in the order in which a core runs it. A collective that is started, and
awaited later, is hidden where a product, of XLA or of a kernel, stands between the two. One that is
a single instruction keeps the core waiting.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from undo_jax.fit import costs
from undo_jax.fit.hlo import COLLECTIVES, Instruction, parse

FUSED = "async-collective-start", "async-collective-done"  # names of libtpu's fusions
PASSED = ("bitcast", "copy", "get-tuple-element", "opt-barrier", "tuple")


class Overlap(NamedTuple):
    """Bytes that a device receives in a step, by the kind of collective."""

    hidden: Mapping[str, float]  # of those with a product between their start and their end
    total: Mapping[str, float]

    @property
    def share(self) -> float:
        """Of all bytes, those that are hidden; 1 where there are none."""
        total = sum(self.total.values())
        return sum(self.hidden.values()) / total if total else 1.0


def overlap(text: str) -> Overlap:
    """What is hidden, loops counted once per turn. Raises ValueError for text without an order."""
    if "is_scheduled=true" not in text.partition("\n")[0]:
        raise ValueError("this HLO is not scheduled: give the text of a compiled program")
    counting = costs.Counting(parse(text))
    hidden, total = defaultdict[str, float](float), defaultdict[str, float](float)
    for one in _collectives(counting, counting.module.entry, 1):
        total[one.kind] += one.received
        hidden[one.kind] += one.received * one.beside
    return Overlap(dict(hidden), dict(total))


class _Collective(NamedTuple):
    kind: str
    received: float  # bytes, in all turns of its loop
    beside: bool  # whether a product runs between its start and its end


def _collectives(counting: costs.Counting, name: str, times: int) -> Iterator[_Collective]:
    """Those of a computation and of all that it calls."""
    lines = list(counting.module.computations[name].values())
    for place, one in enumerate(lines):
        if one.opcode == "while":
            turns = times * counting.loops.trips(name, one)
            yield from _collectives(counting, one.calls("body"), turns)
        elif one.opcode == "call":
            yield from _collectives(counting, one.calls("to_apply"), times)
        else:
            between = lines[place + 1 : _end(lines, place)]
            beside = any(counting.of(name, other).flops for other in between)
            for kind, size in counting.of(name, one).collectives.items():
                yield _Collective(kind, times * size, beside)


def _end(lines: Sequence[Instruction], place: int) -> int:
    """Where what starts at this place is awaited; the next line where nothing starts."""
    if not _starts(lines[place]):
        return place + 1
    made = {lines[place].name}
    for later, one in enumerate(lines[place + 1 :], place + 1):
        if made.isdisjoint(one.operands):
            continue
        if one.opcode.endswith("-done") or one.name.startswith(FUSED[1]):
            return later
        if one.opcode in PASSED or one.opcode in ("async-update", "fusion"):
            made.add(one.name)
    return len(lines)


def _starts(one: Instruction) -> bool:
    fused = one.opcode == "fusion" and one.name.startswith(FUSED[0])
    return fused or one.opcode in {f"{kind}-start" for kind in (*COLLECTIVES, "async", "call")}

"""FLOPs and bytes of one device in a compiled program, counted from its optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once; here it is counted once per iteration.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from undo_jax.fit import products
from undo_jax.fit.hlo import (
    COLLECTIVES,
    CUBLAS,
    NAME,
    Array,
    Instruction,
    Module,
    group_size,
    parse,
)
from undo_jax.fit.loops import Loops

FREE = {  # move no bytes, or are counted where they start or in what they call
    "after-all", "async-done", "async-start", "async-update", "bitcast", "call", "call-start",
    "conditional", "constant", "get-tuple-element", "opt-barrier", "parameter", "partition-id",
    "replica-id", "tuple", "while",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")  # of libtpu
IN_PART = ("dynamic-slice", "gather", "slice")  # read of their first operand what they return


@dataclass(frozen=True)
class Cost:
    """What one device computes and moves."""

    flops: float = 0.0  # of matrix products
    memory: float = 0.0  # bytes to and from HBM
    collectives: Mapping[str, float] = field(default_factory=dict)  # bytes received, by kind

    def __add__(self, other: "Cost") -> "Cost":
        received = Counter(self.collectives)
        received.update(other.collectives)
        return Cost(self.flops + other.flops, self.memory + other.memory, dict(received))

    def __mul__(self, times: float) -> "Cost":
        received = {kind: times * size for kind, size in self.collectives.items()}
        return Cost(times * self.flops, times * self.memory, received)


def cost(text: str) -> Cost:
    """The cost of a program. Raises ValueError for text that is not optimised HLO."""
    module = parse(text)
    return Counting(module).cost(module.entry)


def parts(text: str) -> Iterator[tuple[float, Instruction, Cost]]:
    """Of each instruction that a device runs: how often, itself, and its cost once.

    Loops and branches are entered, fusions are not. Raises ValueError as `cost` does.
    """
    module = parse(text)
    return Counting(module).parts(module.entry)


@dataclass(frozen=True, eq=False)
class Counting:
    """The cost of a module's computations, cached."""

    module: Module

    @cached_property
    def _known(self) -> dict[str, Cost]:
        return {}

    def cost(self, name: str) -> Cost:
        """Cost of one run of a computation and all that it calls."""
        if name not in self._known:
            instructions = self.module.computations[name].values()
            self._known[name] = sum((self.of(name, one) for one in instructions), Cost())
        return self._known[name]

    def parts(self, name: str, times: float = 1.0) -> Iterator[tuple[float, Instruction, Cost]]:
        """`parts` of a computation that runs `times` times."""
        for one in self.module.computations[name].values():
            called, often = self._runs(name, one)
            if called:
                yield from self.parts(called, times * often)
            else:
                yield times, one, self.of(name, one)

    def _runs(self, name: str, one: Instruction) -> tuple[str, float]:
        """The computation that an instruction only runs, and how often; "" if there is none."""
        if one.opcode == "while":
            return one.calls("body"), self.loops.trips(name, one)
        if one.opcode == "conditional":  # the most expensive branch
            branches = NAME.findall("".join(re.findall(r"computations?=\{?[^},]*[^}]*", one.rest)))
            branches = [name for name in branches if name in self.module.computations]
            return max(branches, key=self._size), 1
        if one.opcode in ("call", "call-start", "async-start"):  # call-start: on SparseCores
            return one.calls("to_apply") or one.calls("calls"), 1
        return "", 1

    def _size(self, name: str) -> tuple[float, float]:
        """By which computations are ordered: FLOPs, then bytes."""
        cost = self.cost(name)
        return cost.flops, cost.memory

    @cached_property
    def loops(self) -> Loops:
        return Loops(self.module)

    def of(self, name: str, one: Instruction) -> Cost:
        """Cost of one instruction of a computation, and of all that it calls."""
        called, often = self._runs(name, one)
        if called:
            return self.cost(called) * often
        scope = self.module.computations[name]
        inner = Cost()
        if one.opcode == "fusion":  # only its operands and results go through HBM
            inside = self.cost(one.calls("calls"))
            inner = Cost(inside.flops, 0.0, self._starts(one, inside.collectives))
        memory = 0.0 if self._free(one) else self._read(scope, one) + self._written(one)
        received = {one.kind: self._received(scope, one)} if one.kind in COLLECTIVES else {}
        return inner + Cost(products.flops(scope, one), memory, received)

    def _starts(self, fusion: Instruction, inside: Mapping[str, float]) -> Mapping[str, float]:
        """Those collectives in one of libtpu's fusions that start there, so that each counts once.

        An asynchronous one appears in the fusion that starts it, in those that overlap with it and
        in the one that waits for it. An all-reduce whose result is sliced at once is a
        reduce-scatter: it sends half as much.
        """
        called = fusion.calls("calls")
        if called.startswith("async_collective_fusion") or _waits(fusion):
            return {}
        if called.startswith("all-reduce-scatter"):
            return {"reduce-scatter": inside["all-reduce"] / 2}
        return inside

    def _free(self, one: Instruction) -> bool:
        silent = one.opcode == "custom-call" and any(name in one.rest for name in FREE_CALLS)
        return silent or one.opcode in FREE or one.opcode.endswith("-done") or _waits(one)

    def _read(self, scope: Mapping[str, Instruction], one: Instruction) -> float:
        """Bytes read from HBM."""
        return sum(
            min(self._used(one, place, array.bytes), array.far)
            for place, name in enumerate(one.operands)
            if name in scope
            for array in scope[name].arrays
        )

    def _used(self, one: Instruction, place: int, whole: float) -> float:
        """Bytes of operand number `place` that an instruction reads."""
        if one.kind in IN_PART and place == 0:
            return sum(array.bytes for array in _made(one))
        if one.opcode == "dynamic-update-slice" and place == 0:
            return 0.0  # in place
        if one.opcode != "fusion":
            return whole
        inside = self.module.computations[one.calls("calls")]
        parameter = next(
            (i for i in inside.values() if i.opcode == "parameter" and i.literal == str(place)),
            None,
        )
        return self._looked_at(inside, parameter.name, whole) if parameter else whole

    def _looked_at(self, scope: Mapping[str, Instruction], name: str, whole: float) -> float:
        """Bytes of a value that its users in a fusion read."""
        total = 0.0
        for user in scope.values():
            for place, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode == "bitcast":
                    total += self._looked_at(scope, user.name, whole)
                else:
                    total += self._used(user, place, whole)
        return min(total, whole)

    def _written(self, one: Instruction) -> float:
        """Bytes written to HBM; an update in place writes only what is new."""
        if one.opcode == "fusion":
            inside = self.module.computations[one.calls("calls")]
            root = next(i for i in inside.values() if i.root)
            roots = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
            if len(roots) == len(one.arrays):
                pairs = zip(roots, one.arrays, strict=True)
                return sum(min(_new(inside, made), array.far) for made, array in pairs)
        if one.opcode == "dynamic-update-slice":
            return sum(array.far for array in one.arrays[:1])
        return sum(array.far for array in _made(one))

    def _received(self, scope: Mapping[str, Instruction], one: Instruction) -> float:
        """Bytes that this device receives over its links, by the best algorithm (a ring)."""
        group = group_size(one, self.module.devices)
        sent = sum(array.bytes for name in one.operands for array in scope[name].arrays)
        if one.kind == "collective-permute":
            return sent
        share = (group - 1) / group
        return {"all-gather": group * sent, "all-reduce": 2 * sent}.get(one.kind, sent) * share


def _waits(one: Instruction) -> bool:
    """Whether it only waits for a collective that was started before."""
    return one.opcode == "fusion" and one.name.startswith("async-collective-done")


def _made(one: Instruction) -> tuple[Array, ...]:
    """The arrays of its shape that are results: not operands or scratch memory."""
    if one.opcode == "copy-start" or CUBLAS in one.rest:
        return one.arrays[:1]  # the result comes first, then source or scratch
    if one.opcode.endswith("-start"):  # results follow operands, except in all-reduce-start
        count = len(one.operands)
        return one.arrays[count : 2 * count] or one.arrays
    return one.arrays


def _new(scope: Mapping[str, Instruction], made: Instruction) -> float:
    """Bytes of a fusion's result without what it updates in place."""
    while made.opcode == "bitcast":
        made = scope[made.operands[0]]
    if made.opcode == "dynamic-update-slice":
        made = scope[made.operands[1]]
    return sum(array.bytes for array in made.arrays)

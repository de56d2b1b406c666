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

FREE = {  # opcodes that move no bytes, or count where they start or in what they call
    "after-all", "async-done", "async-start", "async-update", "bitcast", "call", "call-start",
    "conditional", "constant", "get-tuple-element", "opt-barrier", "parameter", "partition-id",
    "replica-id", "tuple", "while",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")  # of libtpu
SLICING = ("dynamic-slice", "gather", "slice")  # read only a part of their first operand


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
    """Returns the cost of a program. Raises ValueError for text that is not optimised HLO."""
    module = parse(text)
    return CostCounter(module).cost(module.entry)


def parts(text: str) -> Iterator[tuple[float, Instruction, Cost]]:
    """Yields each instruction that a device runs: how often it runs, itself, and its cost per run.

    Loops and branches are entered, fusions are not. Raises ValueError as `cost` does.
    """
    module = parse(text)
    return CostCounter(module).parts(module.entry)


@dataclass(frozen=True, eq=False)
class CostCounter:
    """Counts the costs of a module's computations, each once."""

    module: Module

    @cached_property
    def _cost_by_name(self) -> dict[str, Cost]:
        return {}

    def cost(self, name: str) -> Cost:
        """Returns the cost of one run of a computation and all that it calls."""
        if name not in self._cost_by_name:
            instructions = self.module.computations[name].values()
            self._cost_by_name[name] = sum((self.of(name, op) for op in instructions), Cost())
        return self._cost_by_name[name]

    def parts(self, name: str, times: float = 1.0) -> Iterator[tuple[float, Instruction, Cost]]:
        """Yields the `parts` of a computation that runs `times` times."""
        for op in self.module.computations[name].values():
            called, repeats = self._called_computation(name, op)
            if called:
                yield from self.parts(called, times * repeats)
            else:
                yield times, op, self.of(name, op)

    def _called_computation(self, name: str, op: Instruction) -> tuple[str, float]:
        """Returns the computation that an instruction runs, and how often; "" if there is none."""
        if op.opcode == "while":
            return op.calls("body"), self.loops.trips(name, op)
        if op.opcode == "conditional":  # the most expensive branch
            branches = NAME.findall("".join(re.findall(r"computations?=\{?[^},]*[^}]*", op.rest)))
            branches = [name for name in branches if name in self.module.computations]
            return max(branches, key=self._cost_order), 1
        if op.opcode in ("call", "call-start", "async-start"):  # call-start: on SparseCores
            return op.calls("to_apply") or op.calls("calls"), 1
        return "", 1

    def _cost_order(self, name: str) -> tuple[float, float]:
        """Returns the key by which computations are ordered: FLOPs, then bytes."""
        cost = self.cost(name)
        return cost.flops, cost.memory

    @cached_property
    def loops(self) -> Loops:
        return Loops(self.module)

    def of(self, name: str, op: Instruction) -> Cost:
        """Returns the cost of one instruction of a computation, and of all that it calls."""
        called, repeats = self._called_computation(name, op)
        if called:
            return self.cost(called) * repeats
        scope = self.module.computations[name]
        inner = Cost()
        if op.opcode == "fusion":  # only its operands and results go through HBM
            fused = self.cost(op.calls("calls"))
            inner = Cost(fused.flops, 0.0, self._started_here(op, fused.collectives))
        memory = 0.0 if self._is_free(op) else self._bytes_read(scope, op) + self._bytes_written(op)
        received = {op.kind: self._bytes_received(scope, op)} if op.kind in COLLECTIVES else {}
        return inner + Cost(products.flops(scope, op), memory, received)

    def _started_here(self, fusion: Instruction, fused: Mapping[str, float]) -> Mapping[str, float]:
        """Returns the collectives that start in one of libtpu's fusions, so that each counts once.

        An asynchronous one appears in the fusion that starts it, in those that overlap with it and
        in the one that waits for it. An all-reduce whose result is sliced at once is a
        reduce-scatter: it sends half as much.
        """
        called = fusion.calls("calls")
        if called.startswith("async_collective_fusion") or _is_wait(fusion):
            return {}
        if called.startswith("all-reduce-scatter"):
            return {"reduce-scatter": fused["all-reduce"] / 2}
        return fused

    def _is_free(self, op: Instruction) -> bool:
        is_free_call = op.opcode == "custom-call" and any(name in op.rest for name in FREE_CALLS)
        return is_free_call or op.opcode in FREE or op.opcode.endswith("-done") or _is_wait(op)

    def _bytes_read(self, scope: Mapping[str, Instruction], op: Instruction) -> float:
        """Returns the bytes read from HBM."""
        return sum(
            min(self._operand_bytes(op, position, array.bytes), array.far)
            for position, name in enumerate(op.operands)
            if name in scope
            for array in scope[name].arrays
        )

    def _operand_bytes(self, op: Instruction, position: int, whole: float) -> float:
        """Returns how many of an operand's `whole` bytes an instruction reads."""
        if op.kind in SLICING and position == 0:
            return sum(array.bytes for array in _results(op))
        if op.opcode == "dynamic-update-slice" and position == 0:
            return 0.0  # in place
        if op.opcode != "fusion":
            return whole
        fused = self.module.computations[op.calls("calls")]
        parameter = next(
            (i for i in fused.values() if i.opcode == "parameter" and i.literal == str(position)),
            None,
        )
        return self._bytes_read_by_users(fused, parameter.name, whole) if parameter else whole

    def _bytes_read_by_users(
        self, scope: Mapping[str, Instruction], name: str, whole: float
    ) -> float:
        """Returns how many of a value's `whole` bytes its users in a fusion read."""
        total = 0.0
        for user in scope.values():
            for position, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode == "bitcast":
                    total += self._bytes_read_by_users(scope, user.name, whole)
                else:
                    total += self._operand_bytes(user, position, whole)
        return min(total, whole)

    def _bytes_written(self, op: Instruction) -> float:
        """Returns the bytes written to HBM; an update in place writes only the new values."""
        if op.opcode == "fusion":
            fused = self.module.computations[op.calls("calls")]
            root = next(i for i in fused.values() if i.root)
            roots = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
            if len(roots) == len(op.arrays):
                pairs = zip(roots, op.arrays, strict=True)
                return sum(min(_updated_bytes(fused, result), array.far) for result, array in pairs)
        if op.opcode == "dynamic-update-slice":
            return sum(array.far for array in op.arrays[:1])
        return sum(array.far for array in _results(op))

    def _bytes_received(self, scope: Mapping[str, Instruction], op: Instruction) -> float:
        """Returns the bytes that a device receives over its links, by a ring algorithm."""
        group = group_size(op, self.module.devices)
        sent = sum(array.bytes for name in op.operands for array in scope[name].arrays)
        if op.kind == "collective-permute":
            return sent
        share = (group - 1) / group
        return {"all-gather": group * sent, "all-reduce": 2 * sent}.get(op.kind, sent) * share


def _is_wait(op: Instruction) -> bool:
    """Returns whether a fusion only waits for a collective that started before."""
    return op.opcode == "fusion" and op.name.startswith("async-collective-done")


def _results(op: Instruction) -> tuple[Array, ...]:
    """Returns the arrays of its shape that are results, not operands or scratch memory."""
    if op.opcode == "copy-start" or CUBLAS in op.rest:
        return op.arrays[:1]  # the result comes first, then source or scratch
    if op.opcode.endswith("-start"):  # results follow operands, except in all-reduce-start
        count = len(op.operands)
        return op.arrays[count : 2 * count] or op.arrays
    return op.arrays


def _updated_bytes(scope: Mapping[str, Instruction], result: Instruction) -> float:
    """Returns the bytes of a fusion's result without those that an update in place leaves."""
    while result.opcode == "bitcast":
        result = scope[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        result = scope[result.operands[1]]
    return sum(array.bytes for array in result.arrays)

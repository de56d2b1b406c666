"""FLOPs and bytes of one device in a compiled program, counted from its optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once; here it is counted once per iteration.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from undo_jax.fit import products
from undo_jax.fit.hlo import (
    COLLECTIVES,
    CUBLAS,
    Array,
    Instruction,
    Module,
    group_size,
    parse,
)
from undo_jax.fit.loops import Frame

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
    return frame_cost(entry_frame(text))


def entry_frame(text: str) -> Frame:
    """Returns the run of a program from its entry. Raises ValueError as `cost` does."""
    module = parse(text)
    return Frame(module, module.entry)


def frame_cost(frame: Frame) -> Cost:
    """Returns the cost of one run of a computation and all that it calls."""
    return sum((cost * times for times, _, cost in parts(frame)), Cost())


def parts(frame: Frame, times: float = 1.0) -> Iterator[tuple[float, Instruction, Cost]]:
    """Yields each instruction that a device runs: how often it runs, itself, and its cost per run.

    Loops and branches are entered, fusions are not.
    """
    for op in frame.scope.values():
        inner = entered(frame, op)
        if inner is None:
            yield times, op, _cost_here(frame, op)
        else:
            yield from parts(inner, times * (frame.trips(op) if op.opcode == "while" else 1))


def entered(frame: Frame, op: Instruction) -> Frame | None:
    """Returns the run of the loop's body, branch or function that `parts` enters."""
    if op.opcode == "fusion" or not (runs := frame.called(op)):
        return None
    if len(runs) == 1:
        return runs[0]
    costs = [frame_cost(run) for run in runs]  # the most expensive branch
    return runs[max(range(len(runs)), key=lambda i: (costs[i].flops, costs[i].memory))]


def op_cost(frame: Frame, op: Instruction) -> Cost:
    """Returns the cost of one instruction, and of all that it calls."""
    inner = entered(frame, op)
    if inner is None:
        return _cost_here(frame, op)
    return frame_cost(inner) * (frame.trips(op) if op.opcode == "while" else 1)


def _cost_here(frame: Frame, op: Instruction) -> Cost:
    """Returns the cost of an instruction that `parts` does not enter."""
    module, scope = frame.module, frame.scope
    if op.opcode == "fusion":  # only its operands and results go through HBM
        fused = frame_cost(frame.called(op)[0])
        flops, received = fused.flops, _started_here(op, fused.collectives)
    else:
        flops = products.flops(scope, op)
        is_collective = op.kind in COLLECTIVES
        received = {op.kind: _bytes_received(module, scope, op)} if is_collective else {}
    memory = 0.0 if _is_free(op) else _bytes_read(module, scope, op) + _bytes_written(module, op)
    return Cost(flops, memory, received)


def _started_here(fusion: Instruction, fused: Mapping[str, float]) -> Mapping[str, float]:
    """Returns the collectives that start in one of libtpu's fusions, so that each counts once.

    An asynchronous one appears in the fusion that starts it, in those that overlap with it and in
    the one that waits for it. An all-reduce whose result is sliced at once is a reduce-scatter: it
    sends half as much.
    """
    called = fusion.calls("calls")
    if called.startswith("async_collective_fusion") or _is_wait(fusion):
        return {}
    if called.startswith("all-reduce-scatter"):
        return {"reduce-scatter": fused["all-reduce"] / 2}
    return fused


def _is_free(op: Instruction) -> bool:
    is_free_call = op.opcode == "custom-call" and any(name in op.rest for name in FREE_CALLS)
    return is_free_call or op.opcode in FREE or op.opcode.endswith("-done") or _is_wait(op)


def _bytes_read(module: Module, scope: Mapping[str, Instruction], op: Instruction) -> float:
    """Returns the bytes read from HBM."""
    return sum(
        min(_operand_bytes(module, op, position, array.bytes), array.far)
        for position, name in enumerate(op.operands)
        if name in scope
        for array in scope[name].arrays
    )


def _operand_bytes(module: Module, op: Instruction, position: int, whole: float) -> float:
    """Returns how many of an operand's `whole` bytes an instruction reads."""
    if op.kind in SLICING and position == 0:
        return sum(array.bytes for array in _results(op))
    if op.opcode == "dynamic-update-slice" and position == 0:
        return 0.0  # in place
    if op.opcode != "fusion":
        return whole
    fused = module.computations[op.calls("calls")]
    for parameter in fused.values():
        if parameter.opcode == "parameter" and parameter.literal == str(position):
            return _bytes_used(module, fused, parameter.name, whole)
    return whole


def _bytes_used(module: Module, fused: Mapping[str, Instruction], name: str, whole: float) -> float:
    """Returns how many of a value's `whole` bytes its users in a fusion read."""
    sizes = (
        _bytes_used(module, fused, user.name, whole)
        if user.opcode == "bitcast"
        else _operand_bytes(module, user, position, whole)
        for user in fused.values()
        for position, operand in enumerate(user.operands)
        if operand == name
    )
    return min(sum(sizes), whole)


def _bytes_written(module: Module, op: Instruction) -> float:
    """Returns the bytes written to HBM; an update in place writes only the new values."""
    if op.opcode == "fusion":
        fused, root = module.computations[op.calls("calls")], module.root(op.calls("calls"))
        roots = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(roots) == len(op.arrays):
            pairs = zip(roots, op.arrays, strict=True)
            return sum(min(_updated_bytes(fused, result), array.far) for result, array in pairs)
    return sum(array.far for array in _results(op))


def _bytes_received(module: Module, scope: Mapping[str, Instruction], op: Instruction) -> float:
    """Returns the bytes that a device receives over its links, by a ring algorithm."""
    group = group_size(op, module.devices)
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

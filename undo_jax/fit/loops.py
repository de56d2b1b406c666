"""Counts how often a loop of optimised HLO runs, by evaluating the scalars of its condition.

They are evaluated iteration by iteration, so a loop may start anywhere and step by any amount in
either direction: XLA's windowed einsums (collective matrix products) step by two.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from undo_jax.fit.hlo import Instruction, Module

MAX_TRIPS = 2**20  # iterations, after which a loop counts as endless
CALL_OPCODES = ("call", "fusion", "call-start", "async-start")  # call-start: on SparseCores
PASSING = ("bitcast", "convert", "copy", "copy-done", "copy-start", "opt-barrier", "reshape")
OPERATIONS: dict[str, Callable[..., Any]] = {  # opcodes, and directions of comparisons
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "negate": operator.neg,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "minimum": min,
    "maximum": max,
    "clamp": lambda low, x, high: min(max(low, x), high),
    "select": lambda which, yes, no: yes if which else no,
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}


@dataclass(frozen=True)
class Frame:
    """A run of a computation. A value that cannot be determined is None.

    `argument` returns the value of a parameter by its number, and of its element if it is a tuple.
    """

    module: Module
    name: str
    argument: Callable[[int, int | None], int | None] = lambda number, index: None

    @property
    def scope(self) -> Mapping[str, Instruction]:
        """The instructions of the computation, by name."""
        return self.module.computations[self.name]

    def called(self, op: Instruction) -> "list[Frame]":
        """Returns a run of what an instruction calls: of the body of a loop, or of each branch."""
        if op.opcode == "while":
            return [Frame(self.module, op.calls("body"), lambda _, i: self._kept(op, i))]
        if op.opcode == "conditional":  # the first operand chooses
            runs = enumerate(op.branches, start=1)
            return [self._run(name, op.operands[number:]) for number, name in runs]
        if op.opcode in CALL_OPCODES:
            return [self._run(op.calls("calls") or op.calls("to_apply"), op.operands)]
        return []

    def trips(self, loop: Instruction) -> int:
        """Returns how often the body of a loop runs. Raises ValueError if it is not determined.

        XLA for CPU and GPU states the number.
        """
        if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(stated.group(1))
        condition, body = loop.calls("condition"), loop.calls("body")

        # Find the elements of the state that decide the condition, and those they depend on.
        needed, visited = set[int | None](), set[int | None]()
        note = lambda _, index: needed.add(index)  # noqa: E731
        Frame(self.module, condition, note).result()
        while new := needed - visited:
            visited |= new
            for index in new:
                Frame(self.module, body, note).result(index)

        # Run the loop on these elements alone.
        state = {index: self.value(loop.operands[0], index) for index in needed}
        for trip in range(MAX_TRIPS):
            argument = lambda _, index, state=state: state[index]  # noqa: E731
            continues = Frame(self.module, condition, argument).result()
            if continues is None:
                break
            if not continues:
                return trip
            iteration = Frame(self.module, body, argument)
            state = {index: iteration.result(index) for index in needed}
        raise ValueError(f"the loop {loop.name} does not tell how often it runs")

    def result(self, index: int | None = None) -> int | None:
        """Returns the value of an integer scalar that is the result, or an element of it."""
        return self.value(self.module.root(self.name).name, index)

    def value(self, name: str, index: int | None = None) -> int | None:
        """Returns the value of an integer scalar, or of this element of a tuple."""
        op = self.scope[name]
        if op.opcode == "tuple" and index is not None:
            return self.value(op.operands[index])
        if op.opcode == "get-tuple-element":
            value = self.value(op.operands[0], op.index)
        elif op.opcode in PASSING:
            value = self.value(op.operands[0], index)
        elif op.opcode == "parameter":
            value = self.argument(int(op.literal), index)
        elif op.opcode in CALL_OPCODES:
            value = self.called(op)[0].result(index)
        elif index is not None:
            return self._kept(op, index) if op.opcode == "while" else None
        elif op.opcode == "constant":
            value = _parse_constant(op.literal)
        else:
            value = _compute(op, [self.value(operand) for operand in op.operands])
        return value if value is None or index is not None else _wrap(value, op.arrays[0].dtype)

    def _run(self, name: str, operands: tuple[str, ...]) -> "Frame":
        return Frame(self.module, name, lambda n, index: self.value(operands[n], index))

    def _kept(self, loop: Instruction, index: int | None) -> int | None:
        """Returns an element of a loop's state, if its body leaves it unchanged."""
        body = loop.calls("body")
        scope, root = self.module.computations[body], self.module.root(body)
        if root.opcode != "tuple" or index is None:
            return None
        source = scope[root.operands[index]]
        while source.opcode in PASSING:
            source = scope[source.operands[0]]
        if source.opcode != "get-tuple-element" or source.index != index:
            return None
        is_state = scope[source.operands[0]].opcode == "parameter"
        return self.value(loop.operands[0], index) if is_state else None


def _parse_constant(literal: str) -> int | None:
    text = literal.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _compute(op: Instruction, operands: list[int | None]) -> int | None:
    """Returns the result of an arithmetic instruction; None if it cannot be determined."""
    if op.opcode == "and" and 0 in operands:
        return 0
    operation = OPERATIONS.get(op.attribute("direction") or op.opcode)
    return None if operation is None or None in operands else int(operation(*operands))


def _wrap(value: int, dtype: str) -> int | None:
    """Returns an integer as its type stores it: overflow wraps around."""
    if dtype == "pred":
        return value & 1
    integer_type = re.fullmatch(r"([su])(\d+)", dtype)
    if not integer_type:
        return None
    signed, bits = integer_type.group(1) == "s", int(integer_type.group(2))
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value

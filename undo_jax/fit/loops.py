"""Counts how often a loop of optimised HLO runs, by evaluating the scalars of its condition.

They are evaluated iteration by iteration, so a loop may start anywhere and step by any amount in
either direction: XLA's windowed einsums (collective matrix products) step by two.
"""

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from undo_jax.fit.hlo import NAME, Instruction, Module

MAX_TRIPS = 2**20  # iterations, after which a loop counts as endless
CALL_OPCODES = ("call", "fusion")
PASSING = ("bitcast", "convert", "copy", "copy-done", "copy-start", "opt-barrier", "reshape")
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le,
    "GT": operator.gt, "GE": operator.ge,
}  # fmt: skip
OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "negate": operator.neg,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": lambda x: ~x,
    "minimum": min,
    "maximum": max,
    "clamp": lambda low, x, high: min(max(low, x), high),
    "select": lambda which, yes, no: yes if which else no,
}


@dataclass(frozen=True)
class _Site:
    """A computation in one context, which determines the values of its parameters.

    The parameter of a loop's body is a tuple, whose known elements are `state`. The parameters of a
    fusion are the operands of `caller`, an instruction at another site. Without either, the callers
    are looked up in the module.
    """

    name: str
    state: Mapping[int, int | None] | None = None
    caller: "tuple[_Site, Instruction] | None" = None


class _RequestedElements(dict[int, int | None]):
    """A state of unknown values that records which of its elements were read."""

    def __missing__(self, index: int) -> None:
        self[index] = None


@dataclass(frozen=True, eq=False)
class Loops:
    """The loops of a module. A value that cannot be determined is None."""

    module: Module

    def trips(self, computation: str, loop: Instruction) -> int:
        """Returns how often the body of a loop in `computation` runs.

        XLA for CPU and GPU states the number. Raises ValueError if it cannot be determined.
        """
        if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(stated.group(1))
        condition, body = loop.calls("condition"), loop.calls("body")
        test, result = self._root(condition).name, self._root(body).name

        # Find the elements of the state that decide the condition, and those they depend on.
        requested, visited = _RequestedElements(), set()
        self._value(_Site(condition, requested), test)
        while new := requested.keys() - visited:
            visited |= new
            for index in new:
                self._element(_Site(body, requested), result, index)

        # Run the loop on these elements alone.
        before_loop = _Site(computation)
        state = {index: self._element(before_loop, loop.operands[0], index) for index in requested}
        for trip in range(MAX_TRIPS):
            continues = self._value(_Site(condition, state), test)
            if continues is None:
                break
            if not continues:
                return trip
            iteration = _Site(body, state)
            state = {index: self._element(iteration, result, index) for index in requested}
        raise ValueError(f"the loop {loop.name} does not tell how often it runs")

    def _value(self, site: _Site, name: str) -> int | None:
        """Returns the value of an integer scalar."""
        instruction = self.module.computations[site.name][name]
        if instruction.opcode in PASSING:
            value = self._value(site, instruction.operands[0])
        elif instruction.opcode == "constant":
            value = _parse_constant(instruction.literal)
        elif instruction.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.rest)
            value = index and self._element(site, instruction.operands[0], int(index.group(1)))
        elif instruction.opcode == "parameter":
            binding = self._binding(site, int(instruction.literal))
            value = binding and self._value(*binding)
        elif instruction.opcode in CALL_OPCODES:
            callee = _Site(_called(instruction), caller=(site, instruction))
            value = self._value(callee, self._root(callee.name).name)
        else:
            value = _compute(
                instruction, [self._value(site, name) for name in instruction.operands]
            )
        return None if value is None else _wrap(value, instruction.arrays[0].dtype)

    def _element(self, site: _Site, name: str, index: int) -> int | None:
        """Returns the value of one element of a tuple."""
        instruction = self.module.computations[site.name][name]
        if instruction.opcode == "tuple":
            return self._value(site, instruction.operands[index])
        if instruction.opcode in ("copy", "opt-barrier") or (
            instruction.opcode == "while" and self._is_unchanged(instruction.calls("body"), index)
        ):
            return self._element(site, instruction.operands[0], index)
        if instruction.opcode in CALL_OPCODES:
            callee = _Site(_called(instruction), caller=(site, instruction))
            return self._element(callee, self._root(callee.name).name, index)
        if instruction.opcode != "parameter":
            return None
        if site.state is not None:
            return site.state[index]
        binding = self._binding(site, int(instruction.literal), index)
        return binding and self._element(*binding, index)

    def _binding(self, site: _Site, number: int, index: int = -1) -> tuple[_Site, str] | None:
        """Returns the caller's site and operand that are bound to parameter `number`.

        Returns None if the computation is called from several sites, or if the loop that calls it
        changes element `index` of its state.
        """
        callers = [site.caller] if site.caller else self._callers[site.name]
        if len(callers) != 1:
            return None
        caller_site, instruction = callers[0]
        if instruction.opcode == "while" and not self._is_unchanged(
            instruction.calls("body"), index
        ):
            return None
        if instruction.opcode == "conditional":
            number = 1 + _branches(instruction).index(site.name)
        return caller_site, instruction.operands[number]

    def _is_unchanged(self, body: str, index: int) -> bool:
        """Returns whether a loop's body leaves this element of its state unchanged."""
        scope, root = self.module.computations[body], self._root(body)
        if root.opcode != "tuple" or not 0 <= index < len(root.operands):
            return False
        source = scope[root.operands[index]]
        while source.opcode in PASSING:
            source = scope[source.operands[0]]
        if source.opcode != "get-tuple-element" or f"index={index}" not in source.rest.split(", "):
            return False
        return scope[source.operands[0]].opcode == "parameter"

    def _root(self, computation: str) -> Instruction:
        return next(i for i in self.module.computations[computation].values() if i.root)

    @cached_property
    def _callers(self) -> Mapping[str, list[tuple[_Site, Instruction]]]:
        """The call sites of each computation."""
        callers = defaultdict(list)
        for name, scope in self.module.computations.items():
            for instruction in scope.values():
                if instruction.opcode in (*CALL_OPCODES, "while", "conditional"):
                    callees = {_called(instruction), instruction.calls("body")}
                    for callee in callees.union(_branches(instruction)) - {""}:
                        callers[callee].append((_Site(name), instruction))
        return callers


def _called(instruction: Instruction) -> str:
    return instruction.calls("calls") or instruction.calls("to_apply")


def _branches(instruction: Instruction) -> list[str]:
    """Returns the branches of a conditional, in the order of its operands."""
    both = [instruction.calls("true_computation"), instruction.calls("false_computation")]
    indexed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    return NAME.findall(indexed.group(1)) if indexed else [name for name in both if name]


def _parse_constant(literal: str) -> int | None:
    text = literal.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _compute(instruction: Instruction, operands: list[int | None]) -> int | None:
    """Returns the result of an arithmetic instruction; None if it cannot be determined."""
    known_operands = [operand for operand in operands if operand is not None]
    if instruction.opcode == "and" and 0 in known_operands:
        return 0
    if len(known_operands) < len(operands):
        return None
    if instruction.opcode == "compare":
        direction = re.search(r"direction=(\w+)", instruction.rest)
        return direction and int(COMPARISONS[direction.group(1)](*known_operands))
    operation = OPERATIONS.get(instruction.opcode)
    return operation(*known_operands) if operation else None


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

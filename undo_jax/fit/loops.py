"""How often a loop of optimised HLO runs: the scalars that decide it are computed turn by turn.

So a loop may start anywhere, and step by any amount in either direction: XLA's windowed einsums
(collective matrix products) step by two.
"""

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from undo_jax.fit.hlo import NAME, Instruction, Module

MOST = 2**20  # turns, at most: a loop of more is taken for one that does not end
CALLS = ("call", "fusion")
SAME = ("bitcast", "convert", "copy", "copy-done", "copy-start", "opt-barrier", "reshape")
COMPARED: dict[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le,
    "GT": operator.gt, "GE": operator.ge,
}  # fmt: skip
COMPUTED: dict[str, Callable[..., Any]] = {
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
class _Place:
    """A computation, and what is known of its parameters.

    Those of a loop's body are a tuple: its known elements are `state`. Those of a fusion are the
    operands of an instruction in another place, `caller`. Neither: whoever calls it is looked for.
    """

    name: str
    state: Mapping[int, int | None] | None = None
    caller: "tuple[_Place, Instruction] | None" = None


class _Asked(dict[int, int | None]):
    """A state that notes which of its elements were asked for; all are unknown."""

    def __missing__(self, index: int) -> None:
        self[index] = None


@dataclass(frozen=True, eq=False)
class Loops:
    """The loops of a module. A value that cannot be told is None."""

    module: Module

    def trips(self, computation: str, loop: Instruction) -> int:
        """How often the body of a loop in `computation` runs.

        XLA for CPU and GPU states it. Raises ValueError where the text does not say.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known.group(1))
        condition, body = loop.calls("condition"), loop.calls("body")
        test, result = self._root(condition).name, self._root(body).name
        asked, followed = _Asked(), set()
        self._value(_Place(condition, asked), test)
        while new := asked.keys() - followed:  # what these are made from counts as well
            followed |= new
            for index in new:
                self._element(_Place(body, asked), result, index)
        before = _Place(computation)
        state = {index: self._element(before, loop.operands[0], index) for index in asked}
        for turn in range(MOST):
            goes_on = self._value(_Place(condition, state), test)
            if goes_on is None:
                break
            if not goes_on:
                return turn
            inside = _Place(body, state)
            state = {index: self._element(inside, result, index) for index in asked}
        raise ValueError(f"the loop {loop.name} does not tell how often it runs")

    def _value(self, place: _Place, name: str) -> int | None:
        """The value of a whole number."""
        one = self.module.computations[place.name][name]
        if one.opcode in SAME:
            found = self._value(place, one.operands[0])
        elif one.opcode == "constant":
            found = _constant(one.literal)
        elif one.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", one.rest)
            found = index and self._element(place, one.operands[0], int(index.group(1)))
        elif one.opcode == "parameter":
            given = self._given(place, int(one.literal))
            found = given and self._value(*given)
        elif one.opcode in CALLS:
            inside = _Place(_called(one), caller=(place, one))
            found = self._value(inside, self._root(inside.name).name)
        else:
            found = _computed(one, [self._value(place, name) for name in one.operands])
        return None if found is None else _in_type(found, one.arrays[0].dtype)

    def _element(self, place: _Place, name: str, index: int) -> int | None:
        """The value of one element of a tuple."""
        one = self.module.computations[place.name][name]
        if one.opcode == "tuple":
            return self._value(place, one.operands[index])
        if one.opcode in ("copy", "opt-barrier") or (
            one.opcode == "while" and self._stays(one.calls("body"), index)
        ):
            return self._element(place, one.operands[0], index)
        if one.opcode in CALLS:
            inside = _Place(_called(one), caller=(place, one))
            return self._element(inside, self._root(inside.name).name, index)
        if one.opcode != "parameter":
            return None
        if place.state is not None:
            return place.state[index]
        given = self._given(place, int(one.literal), index)
        return given and self._element(*given, index)

    def _given(self, place: _Place, number: int, index: int = -1) -> tuple[_Place, str] | None:
        """What a computation gets as a parameter; of a loop, where element `index` stays as it is.

        It may be called at several places: then it is not known.
        """
        callers = [place.caller] if place.caller else self._callers[place.name]
        if len(callers) != 1:
            return None
        where, one = callers[0]
        if one.opcode == "while" and not self._stays(one.calls("body"), index):
            return None
        if one.opcode == "conditional":
            number = 1 + _branches(one).index(place.name)
        return where, one.operands[number]

    def _stays(self, body: str, index: int) -> bool:
        """Whether a loop's body returns this element of its state as it got it."""
        scope, root = self.module.computations[body], self._root(body)
        if root.opcode != "tuple" or not 0 <= index < len(root.operands):
            return False
        made = scope[root.operands[index]]
        while made.opcode in SAME:
            made = scope[made.operands[0]]
        if made.opcode != "get-tuple-element" or f"index={index}" not in made.rest.split(", "):
            return False
        return scope[made.operands[0]].opcode == "parameter"

    def _root(self, computation: str) -> Instruction:
        return next(one for one in self.module.computations[computation].values() if one.root)

    @cached_property
    def _callers(self) -> Mapping[str, list[tuple[_Place, Instruction]]]:
        """Where each computation is called."""
        found = defaultdict(list)
        for name, scope in self.module.computations.items():
            for one in scope.values():
                if one.opcode in (*CALLS, "while", "conditional"):
                    for called in {_called(one), one.calls("body"), *_branches(one)} - {""}:
                        found[called].append((_Place(name), one))
        return found


def _called(one: Instruction) -> str:
    return one.calls("calls") or one.calls("to_apply")


def _branches(one: Instruction) -> list[str]:
    """The branches of a conditional, in the order of its operands."""
    both = [one.calls("true_computation"), one.calls("false_computation")]
    found = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    return NAME.findall(found.group(1)) if found else [name for name in both if name]


def _constant(literal: str) -> int | None:
    text = literal.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _computed(one: Instruction, values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    if one.opcode == "and" and 0 in known:
        return 0
    if len(known) < len(values):
        return None
    if one.opcode == "compare":
        direction = re.search(r"direction=(\w+)", one.rest)
        return direction and int(COMPARED[direction.group(1)](*known))
    return COMPUTED[one.opcode](*known) if one.opcode in COMPUTED else None


def _in_type(value: int, dtype: str) -> int | None:
    """A whole number as its type holds it: one that is too large wraps around."""
    if dtype == "pred":
        return value & 1
    found = re.fullmatch(r"([su])(\d+)", dtype)
    if not found:
        return None
    bits = int(found.group(2))
    value %= 2**bits
    return value - 2**bits if found.group(1) == "s" and value >= 2 ** (bits - 1) else value

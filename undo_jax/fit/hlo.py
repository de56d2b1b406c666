"""Optimised HLO, read from the text of a compiled program."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CUBLAS, TRITON = '"__cublas$', '"__gpu$xla.gpu.triton"'  # on GPUs: matrix products, Pallas kernels

ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
LINE = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """One array. `near`: in memory on the chip (e.g. VMEM), not in HBM."""

    dtype: str
    dims: tuple[int, ...]
    near: bool = False

    @property
    def bytes(self) -> float:
        width = re.search(r"\d+", self.dtype)  # pred has none
        if self.dtype in ("token", "opaque"):
            return 0.0
        return math.prod(self.dims) * (int(width.group()) if width else 8) / 8

    @property
    def far(self) -> float:
        """Its bytes if they are in HBM."""
        return 0.0 if self.near else self.bytes


@dataclass(frozen=True)
class Instruction:
    """A line of HLO; `arrays` are those of its result, a tuple's flattened."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # what follows the operands: attributes
    literal: str = ""  # the text between the parentheses
    root: bool = False

    @property
    def kind(self) -> str:
        """The opcode, without the `-start` of an asynchronous operation."""
        return self.opcode.removesuffix("-start")

    def calls(self, attribute: str) -> str:
        """The computation that an attribute names, e.g. body; empty if there is none."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.rest)
        return found.group(1) if found else ""


@dataclass(frozen=True, eq=False)
class Module:
    """A program: its computations by name."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    devices: int


def parse(text: str) -> Module:
    """The computations of a module. Raises ValueError where there is no entry computation."""
    computations: dict[str, dict[str, Instruction]] = defaultdict(dict)
    entry = current = ""
    devices = re.search(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if found := re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line):
            current = found.group(2)
            entry = current if found.group(1) else entry
        elif found := LINE.match(line):
            instruction = _instruction(*found.groups())
            computations[current][instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return Module(computations, entry, int(devices.group(1)) if devices else 1)


def _instruction(root: str | None, name: str, line: str) -> Instruction:
    shape, line = _split(line) if line.startswith("(") else line.split(" ", 1)
    opcode, _, line = line.strip().partition("(")
    inside, rest = _split("(" + line)
    return Instruction(
        name,
        opcode,
        arrays(shape),
        tuple(NAME.findall(inside)),
        rest,
        inside[1:-1],
        root is not None,
    )


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape as HLO writes it, e.g. (f32[4,2]{1,0}, s32[])."""
    return tuple(
        Array(
            dtype,
            tuple(int(size.lstrip("<=")) for size in dims.split(",") if size),
            re.search(r"S\([1-9]", layout or "") is not None,
        )
        for dtype, dims, layout in ARRAY.findall(shape)
    )


def _split(text: str) -> tuple[str, str]:
    """Split text that opens with a parenthesis: what is inside it, and what follows it."""
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: end + 1], text[end + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def group_size(one: Instruction, devices: int) -> int:
    """How many devices one group of a collective has."""
    text = one.rest
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):  # each group's devices
        return found.group(1).count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):  # number of groups, their size
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{([^}]*)\}", text):  # mesh axes
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found.group(2)))
    return devices

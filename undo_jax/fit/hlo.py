"""Parses optimised HLO, the text of a compiled program."""

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
    """The type and shape of one array; `near` arrays are in on-chip memory (e.g. VMEM), not HBM."""

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
        """Its bytes in HBM: none if it is in on-chip memory."""
        return 0.0 if self.near else self.bytes


@dataclass(frozen=True)
class Instruction:
    """A line of HLO; `arrays` are those of its result, with tuples flattened."""

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

    @property
    def index(self) -> int:
        """Which element of a tuple it gets."""
        return int(self.attribute("index"))

    @property
    def branches(self) -> list[str]:
        """The computations of which it runs one, in the order of its operands."""
        lists = re.findall(r"(?:true_|false_|branch_)computations?=(\{[^}]*\}|%[^,]*)", self.rest)
        return NAME.findall("".join(lists))

    def calls(self, attribute: str) -> str:
        """Returns the computation that an attribute names, e.g. body; "" if there is none."""
        return self.attribute(attribute, "%")

    def attribute(self, name: str, mark: str = "") -> str:
        """Returns the word that follows `name=`, without the mark; "" if there is none."""
        match = re.search(rf"\b{name}={mark}([\w.\-]+)", self.rest)
        return match.group(1) if match else ""


@dataclass(frozen=True, eq=False)
class Module:
    """A program: its computations by name."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    devices: int

    def root(self, name: str) -> Instruction:
        """Returns the instruction whose result is that of a computation."""
        return next(op for op in self.computations[name].values() if op.root)


def parse(text: str) -> Module:
    """Returns the module of a program's text. Raises ValueError if it has no entry computation."""
    computations: dict[str, dict[str, Instruction]] = defaultdict(dict)
    entry = current = ""
    devices = re.search(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if match := re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line):
            current = match.group(2)
            entry = current if match.group(1) else entry
        elif match := LINE.match(line):
            instruction = _instruction(*match.groups())
            computations[current][instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return Module(computations, entry, int(devices.group(1)) if devices else 1)


def _instruction(root: str | None, name: str, line: str) -> Instruction:
    shape, line = _split(line) if line.startswith("(") else line.split(" ", 1)
    opcode, _, line = line.strip().partition("(")
    inside, rest = _split("(" + line)
    operands = tuple(NAME.findall(inside))
    return Instruction(name, opcode, arrays(shape), operands, rest, inside[1:-1], bool(root))


def arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape as HLO writes it, e.g. (f32[4,2]{1,0}, s32[])."""
    return tuple(
        Array(
            dtype,
            tuple(int(size.lstrip("<=")) for size in dims.split(",") if size),
            re.search(r"S\([1-9]", layout or "") is not None,
        )
        for dtype, dims, layout in ARRAY.findall(shape)
    )


def _split(text: str) -> tuple[str, str]:
    """Splits text after the parenthesis that its first character opens is closed."""
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: end + 1], text[end + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def group_size(collective: Instruction, devices: int) -> int:
    """Returns how many of a program's devices are in one group of a collective."""
    text = collective.rest
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):  # each group's devices
        return match.group(1).count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):  # number of groups, their size
        return int(match.group(1))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{([^}]*)\}", text):  # mesh axes
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match.group(2)))
    return devices

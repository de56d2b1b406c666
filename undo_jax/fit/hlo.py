"""What one device does in a compiled program, counted from the text of its optimised HLO.

XLA's own `cost_analysis` counts the body of a loop once; here it counts as often as it runs.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {  # move nothing, or are counted where they start or by what they call
    "after-all", "async-done", "async-start", "async-update", "bitcast", "call", "conditional",
    "constant", "get-tuple-element", "opt-barrier", "parameter", "partition-id", "replica-id",
    "tuple", "while",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")  # libtpu's
CUBLAS, TRITON = '"__cublas$', '"__gpu$xla.gpu.triton"'  # on GPUs: matrix products, Pallas kernels
IN_PART = ("dynamic-slice", "gather", "slice")  # read as much of the first operand as they make

ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
LINE = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
NAME = re.compile(r"%([\w.\-]+)")
CONTRACTED = re.compile(r'\blhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]')
SAID = re.compile(r'(?:"cost_estimate":\{"flops":|\bflops=)"(\d+)"')  # of TPU; `ops.gpu.counted`


class Array(NamedTuple):
    """One array. `near`: in the cores' own memory, not in HBM."""

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
    """A line of HLO; the arrays of a tuple stand side by side."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # what follows the operands: attributes
    literal: str = ""  # what stands between the parentheses
    root: bool = False

    @property
    def kind(self) -> str:
        """The opcode, the same for an operation that is started here and awaited later."""
        return self.opcode.removesuffix("-start")

    def calls(self, attribute: str) -> str:
        """The computation that an attribute names, e.g. body; empty if there is none."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.rest)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Cost:
    """What one device does."""

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
    """What the program does. Raises ValueError for text that is not optimised HLO."""
    program = parse(text)
    return program.cost(program.entry)


def parse(text: str) -> "Program":
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
    return Program(computations, entry, int(devices.group(1)) if devices else 1)


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
    """The parentheses that open the text, and what follows them."""
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: end + 1], text[end + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


@dataclass(frozen=True, eq=False)
class Program:
    """A module: its computations by name."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    devices: int

    @cached_property
    def _known(self) -> dict[str, Cost]:
        return {}

    def cost(self, name: str) -> Cost:
        """Of one run of a computation and all that it calls."""
        if name not in self._known:
            costs = (self._of(self.computations[name], i) for i in self.computations[name].values())
            self._known[name] = sum(costs, Cost())
        return self._known[name]

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs. Raises ValueError where the text does not tell.

        XLA for CPU and GPU writes it down. Else it is what the condition compares with: loops made
        by `lax.scan` and by XLA's own passes count from zero in steps of one.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known.group(1))
        condition, limits, less = loop.calls("condition"), [], True
        for name in [condition, *self._called(condition)]:
            for one in self.computations[name].values():
                if one.opcode == "constant" and re.fullmatch(r"\d+", one.literal):
                    limits.append(int(one.literal))
                less = less and "direction=LE" not in one.rest
        if len(limits) != 1:
            raise ValueError(f"the loop {loop.name} does not tell how often it runs: {limits}")
        return limits[0] + (not less)

    def _called(self, name: str) -> list[str]:
        """The computations that a computation's fusions and calls run."""
        found = [
            one.calls("calls") or one.calls("to_apply") for one in self.computations[name].values()
        ]
        return [name for name in found if name]

    def _of(self, scope: Mapping[str, Instruction], one: Instruction) -> Cost:
        """Of one instruction, with all that it calls."""
        if one.opcode == "while":
            return self.cost(one.calls("body")) * self.trips(one)
        if one.opcode == "conditional":  # the costly branch
            branches = NAME.findall("".join(re.findall(r"computations?=\{?[^},]*[^}]*", one.rest)))
            branches = [name for name in branches if name in self.computations]
            return max(map(self.cost, branches), key=lambda cost: (cost.flops, cost.memory))
        if one.opcode in ("call", "async-start"):
            return self.cost(one.calls("to_apply") or one.calls("calls"))
        inner = Cost()
        if one.opcode == "fusion":  # what is inside costs no memory traffic
            inside = self.cost(one.calls("calls"))
            inner = Cost(inside.flops, 0.0, self._starts(one, inside.collectives))
        memory = 0.0 if self._free(one) else self._read(scope, one) + self._written(one)
        received = {one.kind: self._received(scope, one)} if one.kind in COLLECTIVES else {}
        return inner + Cost(_flops(scope, one), memory, received)

    def _starts(self, fusion: Instruction, inside: Mapping[str, float]) -> Mapping[str, float]:
        """Collectives that begin in a fusion of libtpu's, of those that it runs.

        One that runs beside arithmetic stands in the fusion that starts it, in those that run
        meanwhile and in the one that waits. An all-reduce whose result is sliced at once is a
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
        """Bytes of operand number `place` that an instruction looks at."""
        if one.kind in IN_PART and place == 0:
            return sum(array.bytes for array in _made(one))
        if one.opcode == "dynamic-update-slice" and place == 0:
            return 0.0  # in place
        if one.opcode != "fusion":
            return whole
        inside = self.computations[one.calls("calls")]
        parameter = next(
            (i for i in inside.values() if i.opcode == "parameter" and i.literal == str(place)),
            None,
        )
        return self._looked_at(inside, parameter.name, whole) if parameter else whole

    def _looked_at(self, scope: Mapping[str, Instruction], name: str, whole: float) -> float:
        """Bytes of a value that its users in a fusion look at."""
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
            inside = self.computations[one.calls("calls")]
            root = next(i for i in inside.values() if i.root)
            roots = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
            if len(roots) == len(one.arrays):
                pairs = zip(roots, one.arrays, strict=True)
                return sum(min(_new(inside, made), array.far) for made, array in pairs)
        if one.opcode == "dynamic-update-slice":
            return sum(array.far for array in one.arrays[:1])
        return sum(array.far for array in _made(one))

    def _received(self, scope: Mapping[str, Instruction], one: Instruction) -> float:
        """Bytes that reach this device over its links, in the best of algorithms (a ring)."""
        group = _group(one, self.devices)
        sent = sum(array.bytes for name in one.operands for array in scope[name].arrays)
        if one.kind == "collective-permute":
            return sent
        share = (group - 1) / group
        return {"all-gather": group * sent, "all-reduce": 2 * sent}.get(one.kind, sent) * share


def _waits(one: Instruction) -> bool:
    """Whether it only waits for a collective that runs already."""
    return one.opcode == "fusion" and one.name.startswith("async-collective-done")


def _made(one: Instruction) -> tuple[Array, ...]:
    """What it makes, of what stands in its shape."""
    if one.opcode == "copy-start" or CUBLAS in one.rest:
        return one.arrays[:1]  # before its source, before its scratch
    if one.opcode.endswith("-start"):  # behind the operands, but for all-reduce-start
        count = len(one.operands)
        return one.arrays[count : 2 * count] or one.arrays
    return one.arrays


def _new(scope: Mapping[str, Instruction], made: Instruction) -> float:
    """Bytes of what a fusion makes that were not there before."""
    while made.opcode == "bitcast":
        made = scope[made.operands[0]]
    if made.opcode == "dynamic-update-slice":
        made = scope[made.operands[1]]
    return sum(array.bytes for array in made.arrays)


def _group(one: Instruction, devices: int) -> int:
    """How many devices take part in a collective with each other."""
    text = one.rest
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):  # each group's devices
        return found.group(1).count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):  # number of groups, their size
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{([^}]*)\}", text):  # mesh axes
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found.group(2)))
    return devices


# ----------------------------------------------------------------------------- matrix products


def _flops(scope: Mapping[str, Instruction], one: Instruction) -> float:
    """Two for each multiplication of a matrix product; XLA for TPU writes it as a convolution."""
    if one.opcode == "dot" or CUBLAS in one.rest:
        left = scope[one.operands[0]].arrays[0].dims
        found = CONTRACTED.search(one.rest)
        contracted = [left[int(d)] for d in re.findall(r"\d+", found.group(1))] if found else []
        return 2.0 * math.prod(one.arrays[0].dims) * math.prod(contracted)
    if one.opcode == "convolution":
        return 2.0 * _multiplications(scope, one)
    if one.name.startswith("splash_"):
        return _attention(scope, one)
    if one.opcode == "custom-call":  # a kernel says itself what it does
        found = SAID.search(one.rest)
        if found is None and TRITON in one.rest:
            raise ValueError(f"{one.name} does not say its FLOPs: call it within ops.gpu.counted")
        return float(found.group(1)) if found else 0.0
    return 0.0


def _attention(scope: Mapping[str, Instruction], one: Instruction) -> float:
    """Of JAX's splash kernels, which do not say: blocks up to the diagonal, whatever the window."""
    arrays = [array for name in one.operands for array in scope[name].arrays]
    blocks = arrays[0].dims[-2]  # along the queries, of the mask
    *heads, time, width = next(array.dims for array in arrays if "f" in array.dtype)
    products = next(n for kind, n in (("fwd", 2), ("dq", 3), ("dkv", 4)) if kind in one.name)
    pairs = time * time * (1 + 1 / blocks) / 2
    return 2.0 * products * math.prod(heads) * pairs * width


def _multiplications(scope: Mapping[str, Instruction], one: Instruction) -> float:
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if found is None:
        raise ValueError(f"{one.name} is a convolution without dim_labels")
    labels = dict(zip(("left", "right", "out"), found.groups(), strict=True))
    dims = {
        "left": scope[one.operands[0]].arrays[0].dims,
        "right": scope[one.operands[1]].arrays[0].dims,
        "out": one.arrays[0].dims,
    }
    size = {side: dict(zip(labels[side], dims[side], strict=True)) for side in labels}
    total = size["out"]["b"] * size["out"]["f"] * size["right"]["i"]
    window = {
        key: text.split("x") for key, text in re.findall(r"(\w+)=([\dx_\-]+)", (_window(one) or ""))
    }
    for label in sorted(set(labels["out"]) - {"b", "f"}):
        axis = int(label)
        value = lambda key, default: window.get(key, [default] * (axis + 1))[axis]  # noqa: B023, E731
        low, _ = (int(pad) for pad in value("pad", "0_0").split("_"))
        total *= _meetings(
            size["out"][label],
            size["right"][label],
            size["left"][label],
            int(value("stride", "1")),
            low,
            int(value("lhs_dilate", "1")),
            int(value("rhs_dilate", "1")),
        )
    return total


def _window(one: Instruction) -> str | None:
    found = re.search(r"window=\{([^}]*)\}", one.rest)
    return found and found.group(1)


def _meetings(
    out: int, kernel: int, left: int, stride: int, low: int, spread: int, kernel_spread: int
) -> int:
    """How often an element of the window meets one of the left side, not padding or a gap."""
    places = (
        place * stride + step * kernel_spread - low
        for place in range(out)
        for step in range(kernel)
    )
    return sum(place % spread == 0 and 0 <= place // spread < left for place in places)

"""FLOPs of matrix products, and of the kernels that do them, in optimised HLO."""

import math
import re
from collections.abc import Mapping

from undo_jax.fit.hlo import CUBLAS, TRITON, Instruction

CONTRACTED = re.compile(r'\blhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]')
SAID = re.compile(r'(?:"cost_estimate":\{"flops":|\bflops=)"(\d+)"')  # of TPU; `ops.gpu.counted`


def flops(scope: Mapping[str, Instruction], one: Instruction) -> float:
    """Two per multiplication of a matrix product, which XLA for TPU writes as a convolution."""
    if one.opcode == "dot" or CUBLAS in one.rest:
        left = scope[one.operands[0]].arrays[0].dims
        found = CONTRACTED.search(one.rest)
        contracted = [left[int(d)] for d in re.findall(r"\d+", found.group(1))] if found else []
        return 2.0 * math.prod(one.arrays[0].dims) * math.prod(contracted)
    if one.opcode == "convolution":
        return 2.0 * _multiplications(scope, one)
    if one.name.startswith("splash_"):
        return _attention(scope, one)
    if one.opcode == "custom-call":  # a kernel states its own FLOPs
        found = SAID.search(one.rest)
        if found is None and TRITON in one.rest:
            raise ValueError(f"{one.name} does not say its FLOPs: call it within ops.gpu.counted")
        return float(found.group(1)) if found else 0.0
    return 0.0


def _attention(scope: Mapping[str, Instruction], one: Instruction) -> float:
    """FLOPs of JAX's splash kernels, which state none: blocks up to the diagonal, any window."""
    arrays = [array for name in one.operands for array in scope[name].arrays]
    blocks = arrays[0].dims[-2]  # blocks of the mask along the queries
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
    """How often an element of the window is multiplied by one of the left side, not by padding."""
    places = (
        place * stride + step * kernel_spread - low
        for place in range(out)
        for step in range(kernel)
    )
    return sum(place % spread == 0 and 0 <= place // spread < left for place in places)

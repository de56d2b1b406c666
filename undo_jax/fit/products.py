"""Counts FLOPs of matrix products, and of kernels that compute them, in optimised HLO."""

import math
import re
from collections.abc import Mapping

from undo_jax.fit.hlo import CUBLAS, TRITON, Instruction

CONTRACTED = re.compile(r'\blhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]')
# FLOPs that a kernel states: on TPU in its cost estimate, on GPUs by `ops.gpu.counted`
STATED_FLOPS = re.compile(r'(?:"cost_estimate":\{"flops":|\bflops=)"(\d+)"')


def flops(scope: Mapping[str, Instruction], op: Instruction) -> float:
    """Returns the FLOPs of an instruction: two per multiplication of a matrix product.

    XLA for TPU writes matrix products as convolutions. Raises ValueError for an instruction that
    does not state what is needed to count them.
    """
    if op.opcode == "dot" or CUBLAS in op.rest:
        left = scope[op.operands[0]].arrays[0].dims
        match = CONTRACTED.search(op.rest)
        contracted = [left[int(d)] for d in re.findall(r"\d+", match.group(1))] if match else []
        return 2.0 * math.prod(op.arrays[0].dims) * math.prod(contracted)
    if op.opcode == "convolution":
        return 2.0 * _count_multiplications(scope, op)
    if op.name.startswith("splash_"):
        return _splash_flops(scope, op)
    if op.opcode == "custom-call":  # a kernel states its own FLOPs
        match = STATED_FLOPS.search(op.rest)
        if match is None and TRITON in op.rest:
            raise ValueError(f"{op.name} does not say its FLOPs: call it within ops.gpu.counted")
        return float(match.group(1)) if match else 0.0
    return 0.0


def _splash_flops(scope: Mapping[str, Instruction], op: Instruction) -> float:
    """Returns the FLOPs of a splash attention kernel of JAX, which does not state them.

    Counted are the blocks up to the diagonal, whatever the window.
    """
    arrays = [array for name in op.operands for array in scope[name].arrays]
    blocks = arrays[0].dims[-2]  # blocks of the mask along the queries
    *heads, time, width = next(array.dims for array in arrays if "f" in array.dtype)
    products = next(n for kind, n in (("fwd", 2), ("dq", 3), ("dkv", 4)) if kind in op.name)
    pairs = time * time * (1 + 1 / blocks) / 2
    return 2.0 * products * math.prod(heads) * pairs * width


def _count_multiplications(scope: Mapping[str, Instruction], op: Instruction) -> float:
    """Returns the multiplications of a convolution, without those of padding."""
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    if match is None:
        raise ValueError(f"{op.name} is a convolution without dim_labels")
    arrays = (*(scope[name].arrays[0] for name in op.operands[:2]), op.arrays[0])
    left, right, out = (
        dict(zip(labels, array.dims, strict=True))
        for labels, array in zip(match.groups(), arrays, strict=True)
    )
    total = out["b"] * out["f"] * right["i"]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", op.rest.partition("window={")[2].split("}")[0]))
    for label in sorted(out.keys() - {"b", "f"}):
        pad, stride, dilation, kernel_dilation = (
            int(window[key].split("x")[int(label)].split("_")[0]) if key in window else default
            for key, default in (("pad", 0), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        positions = [
            position * stride + step * kernel_dilation - pad
            for position in range(out[label])
            for step in range(right[label])
        ]  # of the left side, spread by its dilation
        total *= sum(
            position % dilation == 0 and 0 <= position // dilation < left[label]
            for position in positions
        )
    return total

"""The Triton kernels against plain references in fp32, and beside XLA: a part of `gpu.py`.

The kernels are for bf16, and so are the cases; a reference has the same numbers in fp32. Tolerances
are those of the tests, relative in norm: 0.01 for attention, 2 · 2^-9 for the gradients of the head
(the rounding of two numbers to bf16) and 1e-5 for its losses.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from gpu_cases import USUAL, Arrays, AttentionCase, Case, cases
from gpu_timing import milliseconds

LIMIT, GROUP = 180, 1000  # seconds of a case, cases of a process
ATTENTION, GRADIENT, LOSS = 0.01, 2 * 2**-9, 1e-5


def names(results: Mapping[str, Any], dry: bool) -> list[str]:
    return list(cases(dry))


def measure(name: str, dry: bool) -> dict[str, Any]:
    """Errors beside tolerances, whether all is well, and for some cases times."""
    case = cases(dry)[name]
    inputs = case.inputs()
    ours = partial(case.program(kernels=True), inputs)
    outputs, reference = ours(), case.reference(inputs)
    errors = {
        quantity: {"error": error(outputs[quantity], reference[quantity], floor), "tolerance": most}
        for quantity, (most, floor) in allowed(case, inputs, reference).items()
    }
    well = all(entry["error"] <= entry["tolerance"] for entry in errors.values())  # not with nan
    result = {"errors": errors, "well": well}
    if case.timed:
        result["ms"] = milliseconds(ours)
        jax.clear_caches()  # no trace with the kernels is used again
        result["xla_ms"] = milliseconds(partial(case.program(kernels=False), inputs))
    return result


def error(ours: jax.Array, plain: jax.Array, floor: float) -> float:
    """The norm of the difference, relative to the reference's; to `floor` where that is smaller."""
    ours, plain = (jnp.ravel(x).astype(jnp.float32) for x in (ours, plain))
    size = max(float(jnp.linalg.norm(plain)), floor, 1e-30)
    return float(jnp.linalg.norm(ours - plain)) / size


def allowed(case: Case, inputs: Arrays, reference: Arrays) -> dict[str, tuple[float, float]]:
    """The tolerance and floor of each quantity.

    Where logits are all equal or far beyond the soft-cap, a gradient may be a sum that cancels: it
    is as exact as what is summed, whose size the floor is.
    """
    extreme = float(case.logits != USUAL)
    size = lambda name: extreme * _rms(inputs[name])  # noqa: E731
    if isinstance(case, AttentionCase):
        each = _rms(reference["dv"])  # weights times those of the output
        floors = {
            "out": 0.0,
            "dq": each * size("k") * inputs["q"].size ** 0.5,
            "dk": each * size("q") * inputs["k"].size ** 0.5,
            "dv": 0.0,
        }
        return {name: (ATTENTION, floor) for name, floor in floors.items()}
    each = float(jnp.linalg.norm(inputs["weights"])) * case.width**0.5  # p - q is at most 1
    return {
        "value": (LOSS, 0.0),
        "each": (LOSS, 0.0),
        "d_hidden": (GRADIENT, each * size("table")),
        "d_table": (GRADIENT, each * size("hidden")),
    }


def _rms(x: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))))

"""Shared by the Triton kernels: the supported GPUs, and PTX instructions."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from undo_jax.runtime.mesh import device_kind

LOG2_E = math.log2(math.e)
INTERPRET = False  # run kernels on a CPU, for tests


class Gpu(NamedTuple):
    flops: float  # bf16, dense, per second
    memory: float  # bytes per second to and from HBM


GPUS = {  # by prefix of `device_kind`; NVIDIA's data sheets, SXM
    "NVIDIA A100": Gpu(312e12, 2039e9),
    "NVIDIA H100": Gpu(989e12, 3350e9),
    "NVIDIA H200": Gpu(989e12, 4800e9),
}


def supported_gpu() -> Gpu | None:
    """Returns the GPU of the current mesh, else of this machine; None if it is not in `GPUS`."""
    kind = device_kind()
    return next((gpu for name, gpu in GPUS.items() if kind.startswith(name)), None)


def counted(flops: float):
    """Returns a context that records a kernel's FLOPs: XLA for GPU drops its `cost_estimate`."""
    return set_xla_metadata(flops=str(round(flops)))


def exp2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.exp2(x) if INTERPRET else _instruction("ex2.approx.ftz.f32", x)


def inverse(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1 / x if INTERPRET else _instruction("rcp.approx.ftz.f32", x)


def tanh(x: Float[Array, "..."], scale: float) -> Float[Array, "..."]:
    """Returns tanh(scale · x), to 3e-7."""
    return 1 - 2 * inverse(1 + exp2(x * (2 * LOG2_E * scale)))


def _instruction(name, x):
    """Applies one PTX instruction, which flushes results below 2^-126 to 0.

    XLA computes them exactly with several instructions.
    """
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    (y,) = plgpu.elementwise_inline_asm(
        f"{name} $0, $1;", args=[x], constraints="=f,f", pack=1, result_shape_dtypes=[like]
    )
    return y

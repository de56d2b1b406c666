"""The GPUs that the Triton kernels are made for, and whether a program is for one of them."""

from typing import NamedTuple

import jax
from jax.experimental.xla_metadata import set_xla_metadata


class Gpu(NamedTuple):
    flops: float  # bf16, dense, a second
    memory: float  # bytes a second to and from HBM


GPUS = {  # by the beginning of the device's kind: NVIDIA's data sheets, SXM
    "NVIDIA A100": Gpu(312e12, 2039e9),
    "NVIDIA H100": Gpu(989e12, 3350e9),
    "NVIDIA H200": Gpu(989e12, 4800e9),
}


def found() -> Gpu | None:
    """That of the mesh in use, else of this machine; None where it is none of these."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    known = (gpu for name, gpu in GPUS.items() if device.device_kind.startswith(name))
    return next(known, None)


def counted(flops: float):
    """Within it a kernel is called that does so much: XLA for GPU forgets its `cost_estimate`."""
    return set_xla_metadata(flops=str(round(flops)))

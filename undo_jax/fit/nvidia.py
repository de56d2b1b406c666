"""Descriptions of GPUs, with which XLA compiles for them without having one."""

from collections.abc import Mapping
from typing import Any

from undo_jax.ops.gpu import GPUS

# The sizes of SXM modules as XLA writes them down in backends/gpu/target_config/specs (a100_sxm_80,
# h100_sxm, h200) in github.com/openxla/xla.
ANY: Mapping[str, Any] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49152,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
}
AMPERE = {
    "cuda_compute_capability": "{ major: 8 }",
    "core_count": 108,
    "fpus_per_core": 64,
    "shared_memory_per_core": 167936,
    "shared_memory_per_block_optin": 166912,
    "l2_cache_size": 41943040,
    "clock_rate_ghz": 1.41,
}
HOPPER = {
    "cuda_compute_capability": "{ major: 9 }",
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
}
CAPACITY = {  # bytes, without what the driver keeps
    "NVIDIA A100": 85100068864,
    "NVIDIA H100": 84942979072,
    "NVIDIA H200": 151397597184,
}
# Without a GPU XLA takes one tiling of its own for each matrix product, and then refuses some; on a
# GPU it times several, and cuBLAS.
FLAGS = {"xla_gpu_enable_triton_gemm": False}


def target(name: str) -> str:
    """A GPU as XLA's `GpuTargetConfigProto`, with library versions of CUDA 13."""
    facts = {
        **ANY,
        **(AMPERE if name == "NVIDIA A100" else HOPPER),
        "device_memory_size": CAPACITY[name],
        "memory_bandwidth": int(GPUS[name].memory),
    }
    lines = "\n".join(
        f"{key} {value}" if str(value).startswith("{") else f"{key}: {value}"
        for key, value in facts.items()
    )
    return (
        f"gpu_device_info {{\n{lines}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 }\n"
        "runtime_version { major: 13 }\n"
        f'device_description_str: "{name}"\n'
    )

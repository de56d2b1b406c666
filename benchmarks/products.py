"""Products of two matrices in PyTorch and XLA on one CPU core: `python benchmarks/products.py`.

Does a library use AMX, the units for products of bf16 matrices that Intel's Xeons have since 2023?
Each way is in a process of its own, one after another. GFLOPs per second of CPU time, which other
work on the machine hardly changes, of the fastest call. Needs the extra `test`, and Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

SIZES = ((512, 128, 512), (4096, 128, 512), (4096, 512, 2048))  # M, K, N
SECONDS = 2  # of CPU time, for each size


class Way(NamedTuple):
    """A library, the dtypes of both factors and of the product, and what the environment says."""

    library: str
    factors: str
    result: str
    environment: Mapping[str, str] = MappingProxyType({})


BELOW_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
ONEDNN = {"XLA_FLAGS": "--xla_cpu_experimental_onednn_custom_call=true"}
WITHOUT_YNN = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=invalid"}
WAYS = {
    "PyTorch fp32": Way("torch", "float32", "float32"),
    "PyTorch bf16": Way("torch", "bfloat16", "bfloat16"),
    "PyTorch bf16 without AMX": Way("torch", "bfloat16", "bfloat16", BELOW_AMX),
    "XLA fp32": Way("jax", "float32", "float32"),
    "XLA bf16": Way("jax", "bfloat16", "bfloat16"),
    "XLA bf16, fp32 result": Way("jax", "bfloat16", "float32"),
    "XLA bf16, fp32 result, without YNNPACK": Way("jax", "bfloat16", "float32", WITHOUT_YNN),
    "XLA bf16, oneDNN": Way("jax", "bfloat16", "bfloat16", ONEDNN),
    "XLA bf16, oneDNN without AMX": Way("jax", "bfloat16", "bfloat16", ONEDNN | BELOW_AMX),
}


def in_torch(m: int, k: int, n: int, way: Way) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    a, b = (torch.randn(*shape).to(getattr(torch, way.factors)) for shape in ((m, k), (k, n)))
    return lambda: a @ b


def in_jax(m: int, k: int, n: int, way: Way) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    first, second = jax.random.split(jax.random.key(0))
    a, b = jax.random.normal(first, (m, k)), jax.random.normal(second, (k, n))
    a, b = a.astype(way.factors), b.astype(way.factors)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=way.result))
    return lambda: product(a, b).block_until_ready()


def seconds(product: Callable[[], Any]) -> float:
    """CPU time of the fastest of many calls."""

    def once() -> float:
        started = time.process_time()
        product()
        return time.process_time() - started

    once()  # compiles, or packs
    times, end = [once()], time.process_time() + SECONDS
    while time.process_time() < end:
        times.append(once())
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        way = WAYS[options.one]
        make = {"torch": in_torch, "jax": in_jax}[way.library]
        return print(json.dumps([seconds(make(*size, way)) for size in SIZES]))
    titles = " | ".join(" × ".join(map(str, size)) for size in SIZES)
    print(f"| GFLOP/s (ratio to the first) | {titles} |\n| --- |{' ---: |' * len(SIZES)}")
    first = None
    for name in options.ways:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **WAYS[name].environment}
        command = [sys.executable, *sys.argv, "--one", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"| {name} | {reason[:60]} |", flush=True)
            continue
        times = json.loads(done.stdout.splitlines()[-1])
        first = first or times
        cells = (
            f"{2e-9 * m * k * n / elapsed:.0f} ({base / elapsed:.2f})"
            for (m, k, n), elapsed, base in zip(SIZES, times, first, strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

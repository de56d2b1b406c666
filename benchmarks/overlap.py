"""Collectives beside products: `python benchmarks/overlap.py`, with the extra tpu, on any machine.

Compiles a distillation step, teacher and student of one size, for slices of 16 chips, and prints
what a chip receives and how much of that libtpu schedules beside products. A program takes minutes.
"""

import argparse
import itertools

import jax
from arguments import known_topology

from undo_jax.fit import chips
from undo_jax.fit.flags import PRESETS, flags
from undo_jax.fit.overlap import overlap
from undo_jax.fit.roofline import roofline
from undo_jax.fit.step import compile_step, distillation, mesh_on
from undo_jax.logs.log import format_number
from undo_jax.models.architecture import GRADIENT_SUMS
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import parse_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

CASES = {"0.1B": ("data=4,fsdp=4", 64), "2B": ("data=2,fsdp=8", 16)}  # mesh, rows of a batch
PLACES = "v5e:4x4", "v5p:2x2x4", "v6e:4x4"
COLUMNS = (
    "size", "slice", "XLA flags", "gradients", "memory", "FLOPs, ms", "HBM, ms", "ICI, ms",
    "received", "beside products",
)  # fmt: skip


def measure(size: str, place: str, xla_flags: str, gradient_sum: str) -> str:
    """A row of the table."""
    mesh, rows = CASES[size]
    lm = preset(size, dtype="bfloat16", remat="full", gradient_sum=gradient_sum)
    training = Training(steps=100, batch_size=rows, optimizer=AdamW(), eval_every=10)
    where = chips.find(place)
    options = dict(flags(xla_flags)) if xla_flags in PRESETS else {}
    step = compile_step(
        distillation(lm, lm, training, 2048), mesh_on(where, parse_mesh(mesh)), options
    )
    assert step.cost is not None, f"{size} does not fit {place}"
    traffic, line = overlap(step.text), roofline(step.cost, where.chip)
    beside = ", ".join(
        f"{kind} {format_number(traffic.hidden[kind])}B of {format_number(traffic.total[kind])}B"
        for kind in sorted(traffic.total)
    )
    return (
        f"| {size} | {place} | {xla_flags} | {gradient_sum} | {format_number(step.memory.total)}B "
        f"| {' | '.join(format_number(1e3 * seconds) for seconds in line)} "
        f"| {format_number(sum(traffic.total.values()))}B | {traffic.share:.0%}: {beside} |"
    )


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--slices", nargs="+", type=known_topology, default=PLACES)
    presets = ["none", *PRESETS]
    parser.add_argument("--xla-flags", nargs="+", default=presets, choices=presets)
    parser.add_argument("--gradients", nargs="+", default=GRADIENT_SUMS, choices=GRADIENT_SUMS)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # loading from it needs a chip
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for case in itertools.product(
        options.sizes, options.slices, options.xla_flags, options.gradients
    ):
        print(measure(*case), flush=True)


if __name__ == "__main__":
    main()

"""Cycles of the head on TPU: `python benchmarks/cycles.py`, with the extra tpu, on any machine.

Compiles each loss of the head with its gradients, with XLA's operations and with the kernels, and
prints a core's cycles: of XLA's operations as XLA estimates them, of a kernel by the instructions
of its schedule, one each cycle, which libtpu writes down. Waiting for HBM is in neither; the time
that HBM takes is beside them.
"""

import argparse
import glob
import itertools
import math
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

SCHEDULES = tempfile.TemporaryDirectory()  # libtpu reads where to write when it is loaded
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={SCHEDULES.name}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from undo_jax.fit import chips, costs  # noqa: E402
from undo_jax.fit.loops import Frame  # noqa: E402
from undo_jax.fit.step import mesh_on  # noqa: E402
from undo_jax.logs.log import format_number  # noqa: E402
from undo_jax.models.gemma2 import PRESETS, preset  # noqa: E402
from undo_jax.ops import head, head_tpu  # noqa: E402
from undo_jax.runtime.mesh import BATCH, MeshShape  # noqa: E402

PLACES = "v5e:2x2", "v5p:2x2x1", "v6e:2x2"
PER_CYCLE = {"v5e": 2**17, "v5p": 2**17, "v6e": 2**19}  # FLOPs of a core's MXUs
ROWS, LENGTH = 4, 2048  # on each chip


def program(place: chips.Slice, width: int, vocabulary: int, name: str) -> str:
    """The compiled loss and gradients, in bf16, with soft-caps of 30."""
    mesh = mesh_on(place, MeshShape(data=place.chips))

    def argument(*shape, dtype=jnp.bfloat16, spec=None):
        spec = P(BATCH) if spec is None else spec
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    rows = ROWS * place.chips
    table = argument(vocabulary, width, spec=P())
    weights = argument(rows, LENGTH, dtype=jnp.float32)
    more = {
        "kl_to_teacher": (argument(rows, LENGTH, width), table),
        "cross_entropy": (argument(rows, LENGTH, dtype=jnp.int32),),
        "kl_to_uniform": (),
    }[name]
    loss = partial(getattr(head, name), softcap=30.0)
    if name == "kl_to_teacher":
        loss = partial(loss, teacher_softcap=30.0)
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return run.lower(argument(rows, LENGTH, width), table, *more, weights).compile().as_text()


def estimated(frame: Frame) -> float:
    """XLA's estimates, of a computation as often as its loops run."""
    total = 0.0
    for instruction in frame.scope.values():
        if instruction.opcode == "while":
            (body,) = frame.called(instruction)
            total += estimated(body) * frame.trips(instruction)
        elif match := re.search(r'"estimated_cycles":"(\d+)"', instruction.rest):
            total += int(match.group(1))
    return total


def scheduled() -> list[tuple[int, float]]:
    """Of each kernel of the program compiled last: instructions, and those the MXUs' work takes."""
    kernel_counts = []
    for path in glob.glob(f"{SCHEDULES.name}/*-head_*final_hlo-static-per-bundle-utilization.txt"):
        _, units, capacity, _, *lines = Path(path).read_text().splitlines()
        assert units.startswith("MXU"), f"another format than that of libtpu 0.0.42: {units}"
        used = [int(line.split()[0]) for line in lines if line.strip()]
        kernel_counts.append((len(used), sum(used) / int(capacity.split()[0])))
    return kernel_counts


def compiled(place: chips.Slice, width: int, vocabulary: int, name: str, kernels: bool) -> str:
    """`program`, and no schedules but its own."""
    for old in glob.glob(f"{SCHEDULES.name}/*"):
        os.remove(old)
    with mock.patch.object(head_tpu, "chosen", return_value=kernels):
        return program(place, width, vocabulary, name)


def measure(place: chips.Slice, width: int, vocabulary: int, name: str) -> str:
    """A row of the table."""
    xla = estimated(costs.entry_frame(compiled(place, width, vocabulary, name, kernels=False)))
    hbm = costs.cost(compiled(place, width, vocabulary, name, kernels=True)).memory
    with jax.set_mesh(mesh_on(place, MeshShape(data=place.chips))):
        size = head_tpu.tiles(*([width] * (2 if name == "kl_to_teacher" else 1)))
    assert size is not None
    tiles = math.ceil(vocabulary / (size.vocabulary * size.cores))
    blocks = math.ceil(ROWS * LENGTH / size.rows)
    count, busy = map(sum, zip(*scheduled(), strict=True))
    cycles = blocks * tiles * count
    seconds = cycles * PER_CYCLE[place.kind] * size.cores / place.chip.flops
    return (
        f"| {name} | {width} | {place.kind} | {format_number(xla)} | "
        f"{format_number(cycles)} | {xla / cycles:.2f} "
        f"| {busy / count:.0%} | {hbm / place.chip.memory / seconds:.0%} |"
    )


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["0.1B", "2B"], choices=PRESETS)
    losses = ["kl_to_teacher", "cross_entropy"]
    parser.add_argument("--losses", nargs="+", default=losses, choices=[*losses, "kl_to_uniform"])
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    print(
        "| loss | width | chip | XLA, cycles | kernels, cycles | ratio | MXU busy | HBM busy |\n"
        "| --- | ---: | --- " + "| ---: " * 5 + "|"
    )
    for name, size, place in itertools.product(options.losses, options.sizes, PLACES):
        config = preset(size)
        print(measure(chips.find(place), config.width, config.vocabulary, name), flush=True)


if __name__ == "__main__":
    main()

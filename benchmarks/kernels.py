"""What the kernels save: `python benchmarks/kernels.py`, with the extras tpu and gpu, anywhere.

Compiles a distillation step, teacher and student of one size, for TPU slices and for a GPU: as XLA
does all of it, with kernels for attention, and with those for the head too. It prints what a chip
does, what that would take at its peaks, and the memory of a chip.
"""

import argparse
import itertools
from unittest import mock

import jax
from growth import work

from undo_jax.fit import chips
from undo_jax.fit.roofline import roofline
from undo_jax.fit.step import compile_step, mesh_on
from undo_jax.logs.log import format_number
from undo_jax.models.gemma2 import preset
from undo_jax.ops import attention_gpu, attention_tpu, head_gpu, head_tpu
from undo_jax.runtime.mesh import MeshShape

SIZES = {"0.1B": (4, 4), "0.3B": (4, 2), "2B": (8, 1)}  # fsdp, rows on a chip
PLACES = "v5e:4x4", "v6e:4x4", "h100:1"
KERNELS = {"XLA": (False, False), "attention": (True, False), "attention, head": (True, True)}
MODULES = {"tpu": (attention_tpu, head_tpu), "cuda": (attention_gpu, head_gpu)}


def main():
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    jax.config.update("jax_platforms", "cpu")
    print(
        "| size | chips | kernels | FLOPs | HBM traffic | FLOPs, ms | HBM, ms | tokens/s at most |"
        " memory |\n" + "| --- " * 9 + "|"
    )
    cases = itertools.product(SIZES.items(), PLACES, KERNELS.items())
    for (size, (fsdp, rows)), name, (kernels, on) in cases:
        place = chips.find(name)
        fsdp = min(fsdp, place.chips)
        mesh = mesh_on(place, MeshShape(data=place.chips // fsdp, fsdp=fsdp))
        spec = work(preset(size, dtype="bfloat16", remat="full"), rows * place.chips, 2048)
        attention, head = MODULES[place.chip.platform]
        with (
            mock.patch.object(attention, "available", return_value=on[0]),
            mock.patch.object(head, "chosen", return_value=on[1]),
        ):
            step = compile_step(spec, mesh)
        if step.cost is None:
            needs = format_number(step.memory.total)
            print(f"| {size} | {name} | {kernels} | does not fit | | | | | {needs}B |")
            continue
        line = roofline(step.cost, place.chip)
        milliseconds = " | ".join(format_number(1e3 * seconds) for seconds in line[:2])
        print(
            f"| {size} | {name} | {kernels} | {format_number(step.cost.flops)} | "
            f"{format_number(step.cost.memory)}B | {milliseconds} | "
            f"{format_number(spec.tokens / line.seconds)} | {format_number(step.memory.total)}B |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What the TPU kernels save: `python benchmarks/tpu_kernels.py` (the extra undo-jax[tpu], no TPU).

Compiles a distillation step, teacher and student of one size, for slices of 16 chips: as XLA does
all of it, with splash attention, and with the head's kernels too, and prints what each would take
at the chip's peaks. Steps are compiled at XLA's lowest effort.
"""

import itertools
from unittest import mock

import jax

from undo_jax.fit import chips
from undo_jax.fit.roofline import roofline
from undo_jax.fit.step import QUICKLY, compile_step, distillation, mesh_on
from undo_jax.log import short
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import preset
from undo_jax.ops import attention_tpu, head_tpu
from undo_jax.optim import AdamW
from undo_jax.sharding import parse_mesh
from undo_jax.train import Training

SIZES = {"0.1B": ("data=4,fsdp=4", 64), "0.3B": ("data=4,fsdp=4", 32), "2B": ("data=2,fsdp=8", 16)}
SLICES = ("v5e:4x4", "v6e:4x4")
KERNELS = {"XLA": (False, False), "splash": (True, False), "splash, head": (True, True)}


def main():
    jax.config.update("jax_platforms", "cpu")
    print("| size | slice | kernels | FLOPs | HBM traffic | MXU, ms | HBM, ms | tokens/s at most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cases = itertools.product(SIZES.items(), SLICES, KERNELS.items())
    for (size, (shape, rows)), place, (name, (splash, kernels)) in cases:
        found = chips.find(place)
        mesh = mesh_on(found, parse_mesh(shape))
        lm = Functional(preset(size, dtype="bfloat16", remat="full"))
        training = Training(steps=100, batch_size=rows, optimizer=AdamW(), eval_every=10)
        work = distillation(lm, lm, training, 2048)
        with (
            mock.patch.object(attention_tpu, "available", lambda *_, on=splash: on),
            mock.patch.object(head_tpu, "chosen", lambda *_, on=kernels: on),
        ):
            cost = compile_step(work, mesh, QUICKLY).cost
        if cost is None:
            print(f"| {size} | {place} | {name} | does not fit | | | | |")
            continue
        line = roofline(cost, found.chip)
        milliseconds = " | ".join(short(1e3 * seconds) for seconds in (line.mxu, line.hbm))
        rate = short(work.tokens / line.seconds)
        print(
            f"| {size} | {place} | {name} | {short(cost.flops)} | {short(cost.memory)}B | "
            f"{milliseconds} | {rate} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

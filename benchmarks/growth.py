"""How a distillation step's cost grows: `python benchmarks/growth.py`, on any devices.

Teacher and student are of one size. From a base, the rows of a batch, the tokens of a row, the
vocabulary and the layers are doubled, one at a time. For each it prints the time of a step, as a
multiple of the first, beside the model's FLOPs likewise, and how far the times are from a straight
line. With `--topology` times are those at the peaks of chips that are not there.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from arguments import known_topology, positive

from undo_jax.fit import bench, chips
from undo_jax.fit.roofline import roofline
from undo_jax.fit.step import compile_step, distillation, mesh_on
from undo_jax.logs.log import format_number
from undo_jax.models.gemma2 import PRESETS, preset
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import Training

FACTORS = 1, 2, 4, 8


def work(lm: Transformer, rows: int, length: int) -> TrainSpec:
    """A step on so many rows of so many tokens."""
    training = Training(steps=100, batch_size=rows, optimizer=AdamW(), eval_every=10)
    return distillation(lm, lm, training, length)


def cases(lm: Transformer, rows: int, length: int) -> dict[str, list[tuple[int, TrainSpec]]]:
    """What is doubled: its sizes, and the step at each."""
    make = {
        "rows": (rows, lambda n: work(lm, n, length)),
        "tokens of a row": (length, lambda n: work(lm, rows, n)),
        "vocabulary": (
            lm.vocabulary,
            lambda n: work(replace(lm, vocabulary=n), rows, length),
        ),
        "layers": (lm.layers, lambda n: work(replace(lm, layers=n), rows, length)),
    }
    return {
        name: [(factor * first, build(factor * first)) for factor in FACTORS]
        for name, (first, build) in make.items()
    }


def from_line(sizes: np.ndarray, times: np.ndarray) -> float:
    """The greatest distance from the line of least squares (of relative errors), as a share."""
    lines = np.stack([np.ones(len(sizes)), sizes], axis=1) / times[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(lines, np.ones(len(sizes)))
    return float(np.max(np.abs((fixed + slope * sizes) / times - 1)))


def measured(steps: int) -> Callable[[TrainSpec], float]:
    """Seconds of a step on these devices, the least of so many: other programs only add."""
    mesh = make_mesh(MeshShape())
    return lambda work: min(bench.measure(work, mesh, steps).each)


def bounded(topology: str) -> Callable[[TrainSpec], float]:
    """Seconds of a step on chips that are not there, at their peaks."""
    jax.config.update("jax_platforms", "cpu")
    place = chips.find(topology)
    mesh = mesh_on(place, MeshShape())

    def seconds(work: TrainSpec) -> float:
        step = compile_step(work, mesh)
        if step.cost is None:
            raise ValueError(f"{work.tokens} tokens do not fit {topology}: start from less")
        return roofline(step.cost, place.chip).seconds

    return seconds


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--vocabulary", type=positive, help="of the base (default: the preset's)")
    parser.add_argument("--rows", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=128, help="tokens of a row")
    parser.add_argument("--steps", type=positive, default=20, help="measured at each size")
    parser.add_argument(
        "--topology", type=known_topology, help="compile for it and measure nothing, e.g. h100:1"
    )
    options = parser.parse_args()
    lm = preset(options.preset, **({"dtype": "bfloat16"} if options.topology else {}))
    lm = replace(lm, vocabulary=options.vocabulary or lm.vocabulary)
    seconds = bounded(options.topology) if options.topology else measured(options.steps)
    print("| what | size | a step, ms | times the first | FLOPs, times the first | off a line |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, steps in cases(lm, options.rows, options.length).items():
        times = [seconds(spec) for _, spec in steps]
        flops = [bench.flops(spec).total * spec.tokens for _, spec in steps]
        off = from_line(np.array([size for size, _ in steps], float), np.array(times))
        for (size, _), time, count in zip(steps, times, flops, strict=True):
            last = f"{off:.0%}" if size == steps[-1][0] else ""
            print(
                f"| {name} | {size} | {format_number(1e3 * time)} | {time / times[0]:.2f} | "
                f"{count / flops[0]:.2f} | {last} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What a remat policy costs: `python benchmarks/remat.py`, on any devices.

A distillation step, teacher and student of one size, under each policy: its time here, or with
`--topology`, for chips that are not there, what a chip does and the memory it takes.
"""

import argparse
from dataclasses import replace

import jax
from arguments import known_topology, positive
from growth import measured, work

from undo_jax.fit import chips
from undo_jax.fit.roofline import roofline
from undo_jax.fit.search import REMAT
from undo_jax.fit.step import compile_step, mesh_on
from undo_jax.logs.log import format_number
from undo_jax.models.gemma2 import PRESETS, preset
from undo_jax.runtime.mesh import parse_mesh
from undo_jax.training.programs import TrainSpec


def measure(works: dict[str, TrainSpec], steps: int) -> None:
    """Times here, and as multiples of the first."""
    print("| remat | a step, ms | times the first |\n| --- | ---: | ---: |")
    seconds, first = measured(steps), 0.0
    for remat, spec in works.items():
        time = seconds(spec)
        first = first or time
        print(f"| {remat} | {format_number(1e3 * time)} | {time / first:.2f} |", flush=True)


def count(works: dict[str, TrainSpec], topology: str, mesh: str) -> None:
    """What a chip does, by the compiler, at its peaks."""
    jax.config.update("jax_platforms", "cpu")
    place = chips.find(topology)
    chip, devices = place.chip, mesh_on(place, parse_mesh(mesh))
    print("| remat | FLOPs, ms | HBM, ms | memory |\n| --- | ---: | ---: | ---: |")
    for remat, spec in works.items():
        step = compile_step(spec, devices)
        times = roofline(step.cost, chip)[:2] if step.cost else (0.0, 0.0)
        columns = [
            *(format_number(1e3 * time) for time in times),
            f"{format_number(step.memory.total)}B",
        ]
        print(f"| {remat} | {' | '.join(columns)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--rows", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=256, help="tokens of a row")
    parser.add_argument("--steps", type=positive, default=20, help="measured")
    parser.add_argument(
        "--topology", type=known_topology, help="compile for it and measure nothing, e.g. h100:1"
    )
    parser.add_argument("--mesh", default="data=-1")
    options = parser.parse_args()
    config = preset(options.preset, **({"dtype": "bfloat16"} if options.topology else {}))
    works = {
        remat: work(replace(config, remat=remat), options.rows, options.length) for remat in REMAT
    }
    if options.topology:
        count(works, options.topology, options.mesh)
    else:
        measure(works, options.steps)


if __name__ == "__main__":
    main()

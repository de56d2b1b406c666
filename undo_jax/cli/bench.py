"""`undo-jax bench EXPERIMENT`."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from undo_jax.bench import flops, measure, peak, split
from undo_jax.cli import experiment as experiments
from undo_jax.cli.devices import prepare_devices
from undo_jax.experiment_file import errors_of_users, load
from undo_jax.fit.step import rows_per_chip
from undo_jax.graph import Work, largest
from undo_jax.log import short
from undo_jax.memory import text as memory
from undo_jax.mesh import MeshShape, axis_sizes, make_mesh, parse_mesh


@errors_of_users()
def bench(words: list[str]) -> None:
    """How fast a stage's train step runs on these devices: tokens/s, MFU, memory.

    MFU counts FLOPs by the model: a training pass counts as three forward passes, a teacher as one,
    recomputation as none; the peak is the device's in bf16. Further flags set any scalar of the
    experiment, e.g. --model.remat full --distill.training.batch-size 512.
    """
    parser = argparse.ArgumentParser(
        prog="undo-jax bench", allow_abbrev=False, description=bench.__doc__
    )
    parser.add_argument("experiment", help="a Python file that defines `experiment`")
    parser.add_argument("--stage", default="distill", help="the kind of recipe (default: distill)")
    parser.add_argument("--mesh", help="e.g. data=4,fsdp=2 (default: the experiment's)")
    parser.add_argument("--steps", type=int, default=20, help="to measure, twice (default: 20)")
    parser.add_argument("--trace", help="a folder for an xprof trace of some steps")
    parser.add_argument(
        "--scale", help="numbers of devices, e.g. 1,2,4,8: strong and weak scaling over data"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    experiments.add_processes(parser)
    parser.error = experiments.refuse
    options, overrides = parser.parse_known_args(words)
    prepare_devices(experiments.processes(options))
    experiment = experiments.graph_with(load(options.experiment), overrides)
    shape = parse_mesh(options.mesh) if options.mesh else experiment.mesh
    work = largest(experiment.recipes().values(), options.stage, experiment.setting)
    title = {"experiment": experiment.name, "stage": options.stage}
    if options.scale:
        found = scale(work, shape, _counts(options.scale), options.steps)
        facts, say = {**title, **found}, scaling
    else:
        facts = {**title, **describe(work, make_mesh(shape), options.steps, options.trace)}
        say = table
    if jax.process_index() == 0:
        print(json.dumps(facts, indent=1) if options.json else say(facts))


def describe(work: Work, mesh: Mesh, steps: int, trace: str | None = None) -> dict[str, Any]:
    """What was measured, as JSON."""
    speed, cost, most = measure(work, mesh, steps, trace), flops(work), peak(mesh)
    rate = mesh.shape["sweep"] * work.tokens / speed.seconds
    return {
        "jax": jax.__version__,
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "rows": work.training.batch_size,
        "rows_per_device": rows_per_chip(work.training, mesh),
        "accumulation": work.training.accumulation,
        "row_length": work.row_length,
        "remat": getattr(work.lm, "remat", "none"),
        "steps": steps,
        "tokens_per_second": rate,
        "seconds": {
            "step": speed.seconds,
            **{f"p{p}": float(np.percentile(speed.each, p)) for p in (10, 50, 90)},
            "compile": speed.compile_seconds,
        },
        "flops_per_token": {**vars(cost), "total": cost.total},
        "flops_per_second": rate * cost.total,
        "mfu": most and rate * cost.total / most,
        "peak_bytes": speed.peak_bytes,
    }


def table(facts: Mapping[str, Any]) -> str:
    """What `describe` found, in 80 columns."""
    mesh = ",".join(f"{axis}={size}" for axis, size in facts["mesh"].items()) or "of one device"
    seconds = {name: f"{short(1e3 * value)} ms" for name, value in facts["seconds"].items()}
    cost = {name: short(value) for name, value in facts["flops_per_token"].items()}
    mfu, full = facts["mfu"], facts["peak_bytes"]
    return "\n".join(
        [
            f"{facts['stage']} of {facts['experiment']} on {facts['devices']} × {facts['device']}, "
            f"mesh {mesh}",
            f"{facts['rows']} rows of {facts['row_length']} tokens "
            f"({short(facts['rows_per_device'])} a device), remat {facts['remat']}",
            "",
            f"tokens/s   {short(facts['tokens_per_second'])}",
            f"step       {seconds['step']}; waited for: {seconds['p50']}, "
            f"p10 {seconds['p10']}, p90 {seconds['p90']}",
            f"compile    {seconds['compile']}",
            f"MFU        {'the peak of this device is not known' if mfu is None else f'{mfu:.1%}'}",
            f"FLOPs      {short(facts['flops_per_second'])}/s; a token {cost['total']}: body "
            f"{cost['body']}, head {cost['head']}, references {cost['references']}",
            f"memory     {'this device does not tell' if full is None else memory(full)}",
        ]
    )


def scale(work: Work, shape: MeshShape, counts: list[int], steps: int) -> dict[str, Any]:
    """The step on this machine's first devices, for each count; `data` gets those left over.

    Strong scaling keeps the batch, weak scaling keeps the rows per device. Raises
    ValueError for more devices than there are, or counts that the mesh's other axes do not divide.
    """
    devices, found = jax.devices(), {"strong": [], "weak": []}
    alone = {axis: 1 for axis, size in dataclasses.asdict(shape).items() if size == -1}
    sizes = dataclasses.replace(shape, **{**alone, "data": -1})
    for count in counts:
        if count > len(devices):
            raise ValueError(f"scale={count}: there are {len(devices)} devices, name fewer")
        axis_sizes(sizes, count)
        mesh = make_mesh(sizes, devices[:count])
        for kind, runs in found.items():
            part = split(work, count, kind == "weak", counts[0])
            runs.append(describe(part, mesh, steps))
    return found


def scaling(facts: Mapping[str, Any]) -> str:
    """What `scale` found, in 80 columns: efficiency is tokens/s per device, first line = 1."""
    lines = [
        f"{facts['stage']} of {facts['experiment']}",
        "",
        "scaling  devices   rows  tokens/s  efficiency",
    ]
    for kind in ("strong", "weak"):
        first = facts[kind][0]
        for one in facts[kind]:
            gain = one["tokens_per_second"] / first["tokens_per_second"]
            lines.append(
                f"{kind:<7}  {one['devices']:>7}  {one['rows']:>5}  "
                f"{short(one['tokens_per_second']):>8}  "
                f"{gain * first['devices'] / one['devices']:>10.0%}"
            )
    return "\n".join(lines)


def _counts(text: str) -> list[int]:
    """Parse numbers of devices. Raises ValueError for other text."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"scale {text!r}: give numbers of devices, e.g. 1,2,4,8")
    return [int(word) for word in words]

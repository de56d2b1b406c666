"""`undo-jax bench EXPERIMENT`, or `bench --preset 2B`."""

import dataclasses
from collections.abc import Mapping
from json import dumps
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tyro.conf import OmitArgPrefixes

from undo_jax.cli import step_source
from undo_jax.cli.devices import ALONE, Joined, prepare_devices
from undo_jax.cli.flags import Further, MaybeExperiment, MaybeText, Switch
from undo_jax.cli.step_source import NO_PRESETS, Asked, Presets
from undo_jax.fit.bench import flops, measure, peak, split
from undo_jax.fit.facts import which
from undo_jax.fit.step import rows_per_chip
from undo_jax.logs.log import format_number, format_seconds
from undo_jax.runner.load_experiment import errors_of_users
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.runtime.mesh import MeshShape, axis_sizes, make_mesh, parse_mesh
from undo_jax.training.train_spec import TrainSpec


@errors_of_users()
def bench(
    experiment: MaybeExperiment = None,
    /,
    *,
    stage: MaybeText = None,
    mesh: MaybeText = None,
    steps: int = 20,
    trace: MaybeText = None,
    scale: MaybeText = None,
    json: Switch = False,
    presets: OmitArgPrefixes[Presets] = NO_PRESETS,
    processes: Joined = ALONE,
    flags: Further = (),
) -> None:
    """How fast a train step runs on these devices: tokens/s, MFU, memory.

    It is that of an experiment's stage, or with --preset the distillation of a model of that size,
    the step that `fit --preset` compiles. MFU counts FLOPs by the model: a training pass counts as
    three forward passes, a teacher as one, recomputation as none; the peak is the device's in bf16.
    Further flags set any scalar of the experiment, e.g. --model.remat full
    --distill.training.batch-size 512.

    Args:
        experiment: a Python file that defines `experiment`; with --preset no file is needed.
        stage: of an experiment, the kind of recipe; distill by default.
        mesh: devices along each axis, e.g. data=4,fsdp=2; by default the experiment's, or data=-1.
        steps: so many are measured, twice.
        trace: a folder for an xprof trace of some steps.
        scale: numbers of devices, e.g. 1,2,4,8: strong and weak scaling over data.
        json: print JSON in place of a table.
    """
    prepare_devices(processes)
    source = step_source.find(Asked(experiment, stage, False, False, presets), flags)
    shape = parse_mesh(mesh) if mesh is not None else source.mesh or MeshShape()
    if scale:
        if not source.sized:
            raise ValueError("--scale beside --preset splits a batch: give it with --rows")
        program = source.programs[0]
        found, say = scaled(program.work, shape, _counts(scale), steps), scaling
    else:
        on = make_mesh(shape)
        program = step_source.first(source, on)
        found, say = describe(program.work, on, steps, trace), table
    facts = {**program.title, **found}
    if jax.process_index() == 0:
        print(dumps(facts, indent=1) if json else say(facts))


def describe(work: TrainSpec, mesh: Mesh, steps: int, trace: str | None = None) -> dict[str, Any]:
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
    seconds = {name: format_seconds(value) for name, value in facts["seconds"].items()}
    cost = {name: format_number(value) for name, value in facts["flops_per_token"].items()}
    mfu, full = facts["mfu"], facts["peak_bytes"]
    return "\n".join(
        [
            f"{facts['stage']} of {facts['experiment']} on {facts['devices']} × {facts['device']}, "
            f"mesh {mesh}",
            *which(facts),
            f"{facts['rows']} rows of {facts['row_length']} tokens "
            f"({format_number(facts['rows_per_device'])} a device), remat {facts['remat']}",
            "",
            f"tokens/s   {format_number(facts['tokens_per_second'])}",
            f"step       {seconds['step']}; waited for: {seconds['p50']}, "
            f"p10 {seconds['p10']}, p90 {seconds['p90']}",
            f"compile    {seconds['compile']}",
            f"MFU        {'the peak of this device is not known' if mfu is None else f'{mfu:.1%}'}",
            f"FLOPs      {format_number(facts['flops_per_second'])}/s; a token {cost['total']}: "
            f"body {cost['body']}, head {cost['head']}, references {cost['references']}",
            f"memory     {'this device does not tell' if full is None else format_bytes(full)}",
        ]
    )


def scaled(work: TrainSpec, shape: MeshShape, counts: list[int], steps: int) -> dict[str, Any]:
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
    """What `scaled` found, in 80 columns: efficiency is tokens/s per device, first line = 1."""
    lines = [
        f"{facts['stage']} of {facts['experiment']}",
        *which(facts),
        "",
        "scaling  devices   rows  tokens/s  efficiency",
    ]
    for kind in ("strong", "weak"):
        first = facts[kind][0]
        for one in facts[kind]:
            gain = one["tokens_per_second"] / first["tokens_per_second"]
            lines.append(
                f"{kind:<7}  {one['devices']:>7}  {one['rows']:>5}  "
                f"{format_number(one['tokens_per_second']):>8}  "
                f"{gain * first['devices'] / one['devices']:>10.0%}"
            )
    return "\n".join(lines)


def _counts(text: str) -> list[int]:
    """Parse numbers of devices. Raises ValueError for other text."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"scale {text!r}: give numbers of devices, e.g. 1,2,4,8")
    return [int(word) for word in words]

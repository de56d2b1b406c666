"""`undo-jax bench EXPERIMENT`, or `bench --preset 2B`."""

import dataclasses
from collections.abc import Mapping
from json import dumps
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tyro.conf import OmitArgPrefixes

from undo_jax.cli import devices
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.flags import ExperimentFlags, MaybeExperiment, MaybeText, Switch
from undo_jax.cli.step_source import NO_PRESETS, Presets, StepRequest, find_steps, first_step
from undo_jax.fit.bench import flops, measure, peak, split
from undo_jax.fit.facts import which
from undo_jax.fit.step import rows_per_chip
from undo_jax.logs.log import format_number, format_seconds
from undo_jax.runner.load_experiment import errors_of_users
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.runtime.mesh import MeshShape, axis_sizes, make_mesh, parse_mesh
from undo_jax.training.programs import TrainSpec

ORDER = 100


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
    flags: ExperimentFlags = (),
) -> None:
    """How fast a train step runs on these devices: tokens/s, MFU, memory.

    It is that of an experiment's stage, or with --preset the distillation of a model of that size,
    the step that `fit --preset` compiles. MFU counts FLOPs by the model: a training pass counts as
    three forward passes, a teacher as one, recomputation as none; the peak is the device's in bf16.
    ExperimentFlags flags set any scalar of the experiment, e.g. --model.remat full
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
    devices.prepare_devices(processes)
    source = find_steps(StepRequest(experiment, stage, False, False, presets), flags)
    shape = parse_mesh(mesh) if mesh is not None else source.mesh or MeshShape()
    if scale:
        if not source.has_rows:
            raise ValueError("--scale beside --preset splits a batch: give it with --rows")
        step = source.steps[0]
        measured, format_facts = scaled(step.spec, shape, _counts(scale), steps), scaling
    else:
        grid = make_mesh(shape)
        step = first_step(source, grid)
        measured, format_facts = describe(step.spec, grid, steps, trace), table
    facts = {**step.title, **measured}
    if jax.process_index() == 0:
        print(dumps(facts, indent=1) if json else format_facts(facts))


def describe(spec: TrainSpec, mesh: Mesh, steps: int, trace: str | None = None) -> dict[str, Any]:
    """Returns the measurements of a step, as JSON."""
    speed, cost, peak_flops = measure(spec, mesh, steps, trace), flops(spec), peak(mesh)
    rate = mesh.shape["sweep"] * spec.tokens / speed.seconds
    return {
        "jax": jax.__version__,
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "rows": spec.training.batch_size,
        "rows_per_device": rows_per_chip(spec.training, mesh),
        "accumulation": spec.training.accumulation,
        "row_length": spec.row_length,
        "remat": getattr(spec.lm, "remat", "none"),
        "steps": steps,
        "tokens_per_second": rate,
        "seconds": {
            "step": speed.seconds,
            **{f"p{p}": float(np.percentile(speed.each, p)) for p in (10, 50, 90)},
            "compile": speed.compile_seconds,
        },
        "flops_per_token": {**vars(cost), "total": cost.total},
        "flops_per_second": rate * cost.total,
        "mfu": peak_flops and rate * cost.total / peak_flops,
        "peak_bytes": speed.peak_bytes,
    }


def table(facts: Mapping[str, Any]) -> str:
    """Returns what `describe` measured, in 80 columns."""
    mesh = ",".join(f"{axis}={size}" for axis, size in facts["mesh"].items()) or "of one device"
    seconds = {name: format_seconds(value) for name, value in facts["seconds"].items()}
    cost = {name: format_number(value) for name, value in facts["flops_per_token"].items()}
    mfu = "the peak of this device is not known" if facts["mfu"] is None else f"{facts['mfu']:.1%}"
    memory = "this device does not tell"
    if facts["peak_bytes"] is not None:
        memory = format_bytes(facts["peak_bytes"])
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
            f"MFU        {mfu}",
            f"FLOPs      {format_number(facts['flops_per_second'])}/s; a token {cost['total']}: "
            f"body {cost['body']}, head {cost['head']}, references {cost['references']}",
            f"memory     {memory}",
        ]
    )


def scaled(spec: TrainSpec, shape: MeshShape, counts: list[int], steps: int) -> dict[str, Any]:
    """Returns measurements of the step on this machine's first devices, for each count.

    Strong scaling keeps the batch, weak scaling keeps the rows per device; `data` gets the devices
    that other axes leave over. Raises ValueError for more devices than there are, or counts that
    the mesh's other axes do not divide.
    """
    available, measured = jax.devices(), {"strong": [], "weak": []}
    alone = {axis: 1 for axis, size in dataclasses.asdict(shape).items() if size == -1}
    sizes = dataclasses.replace(shape, **{**alone, "data": -1})
    for count in counts:
        if count > len(available):
            raise ValueError(f"scale={count}: there are {len(available)} devices, name fewer")
        axis_sizes(sizes, count)
        mesh = make_mesh(sizes, available[:count])
        for kind, runs in measured.items():
            part = split(spec, count, kind == "weak", counts[0])
            runs.append(describe(part, mesh, steps))
    return measured


def scaling(facts: Mapping[str, Any]) -> str:
    """Returns what `scaled` measured, in 80 columns.

    Efficiency is tokens/s per device; that of the first line is 1.
    """
    lines = [
        f"{facts['stage']} of {facts['experiment']}",
        *which(facts),
        "",
        "scaling  devices   rows  tokens/s  efficiency",
    ]
    for kind in ("strong", "weak"):
        first = facts[kind][0]
        for run in facts[kind]:
            gain = run["tokens_per_second"] / first["tokens_per_second"]
            lines.append(
                f"{kind:<7}  {run['devices']:>7}  {run['rows']:>5}  "
                f"{format_number(run['tokens_per_second']):>8}  "
                f"{gain * first['devices'] / run['devices']:>10.0%}"
            )
    return "\n".join(lines)


def _counts(text: str) -> list[int]:
    """Returns numbers of devices, e.g. of 1,2,4. Raises ValueError for other text."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"scale {text!r}: give numbers of devices, e.g. 1,2,4,8")
    return [int(word) for word in words]

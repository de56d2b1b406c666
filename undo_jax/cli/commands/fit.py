"""`undo-jax fit EXPERIMENT --topology v5e:4x4`, or `fit --preset 2B --topology v5e:4x4`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from json import dumps
from typing import NoReturn

import jax
from jax.sharding import Mesh
from tyro.conf import OmitArgPrefixes

from undo_jax.cli.flags import ExperimentFlags, MaybeExperiment, MaybeText, Switch
from undo_jax.cli.plan import shortened
from undo_jax.cli.step_source import (
    NO_PRESETS,
    Presets,
    StepRequest,
    StepSource,
    TitledStep,
    find_steps,
    first_step,
)
from undo_jax.fit import chips
from undo_jax.fit.advice import advice, check
from undo_jax.fit.chips import GIB, Slice
from undo_jax.fit.facts import describe, table
from undo_jax.fit.flags import flags as xla_preset
from undo_jax.fit.least import check_memory
from undo_jax.fit.search import search as largest_batches
from undo_jax.fit.step import Step, compile_step, mesh_on, mesh_text, on_chips, suggestion
from undo_jax.logs.log import console, format_number, show_waiting
from undo_jax.runner.load_experiment import errors_of_users
from undo_jax.runtime.mesh import MeshShape, parse_mesh
from undo_jax.training.programs import TrainSpec

ORDER = 110
TOO_LARGE = 3  # exit status of a step that does not fit


@errors_of_users()
def fit(
    experiment: MaybeExperiment = None,
    /,
    *,
    topology: str,
    mesh: MaybeText = None,
    stage: MaybeText = None,
    all: Switch = False,
    search: Switch = False,
    xla_flags: MaybeText = None,
    json: Switch = False,
    presets: OmitArgPrefixes[Presets] = NO_PRESETS,
    flags: ExperimentFlags = (),
) -> None:
    """Does a step fit a TPU slice, or GPUs, and how fast is it at best? Neither is needed.

    The train step of an experiment's stage is compiled ahead of time for them, or with --preset the
    distillation of a model of that size, which needs no experiment. Exit status 3: it does not fit,
    and one line says what to change. Further flags set any scalar of the experiment, e.g.
    --model.remat full --distill.training.batch-size 512.

    Args:
        experiment: a Python file that defines `experiment`; with --preset no file is needed.
        topology: e.g. v5e:4x4, v5e-16 or h100:8.
        mesh: e.g. data=4,fsdp=4; by default the experiment's, or of presets one that fits.
        stage: of an experiment, the kind of recipe; distill by default.
        all: every program of the experiment, a line each.
        search: find the largest batch for each remat policy.
        xla_flags: compile for TPU with a preset: overlap, sparse_cores or memory.
        json: print JSON in place of a table.
    """
    place = chips.find(topology)
    options = dict(xla_preset(xla_flags)) if xla_flags is not None else {}
    if options and place.chip.platform != "tpu":
        raise ValueError(f"XLA flags {xla_flags!r} are for TPU: {place} needs none")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # loading from it needs a chip
    source = find_on_chips(StepRequest(experiment, stage, all, search, presets), flags)
    shape = parse_mesh(mesh) if mesh is not None else source.mesh
    target = _Target(place, mesh_on(place, shape or suggestion(place)), options)
    if all:
        return _print_all(source, target, json)
    step = first_step(source, target.mesh)
    if search:
        return _print_search(step, target, json)
    _print_one(step, target, json)


@dataclass(frozen=True)
class _Target:
    """What steps are compiled for."""

    place: Slice
    mesh: Mesh
    options: dict[str, str]  # of XLA


def find_on_chips(request: StepRequest, flags: Sequence[str]) -> StepSource:
    """Returns the steps that flags ask for, with models as they are on chips."""
    source = find_steps(request, flags)
    steps = [replace(step, spec=on_chips(step.spec)) for step in source.steps]
    return replace(source, steps=steps)


def _print_one(step: TitledStep, target: _Target, as_json: bool) -> None:
    """Print the facts of one step; exit status 3 and advice if it does not fit."""
    compiled = _compile(step, target)
    facts = {**step.title, **describe(step.spec, target.place, target.mesh, compiled)}
    print(dumps(facts, indent=1) if as_json else table(facts))
    if not facts["fits"]:
        _exit_too_large(advice(step.names, step.spec, target.place, target.mesh, compiled))


def _compile(step: TitledStep, target: _Target) -> Step:
    """Returns the compiled step. Raises ValueError, naming the flag, for impossible sizes."""
    spec = step.spec
    check(spec, target.mesh, step.names)
    name = f"{step.title['stage']} of {step.title['experiment']} for {target.place}"
    size = f"{spec.training.batch_size} rows, remat {getattr(spec.lm, 'remat', 'none')}"
    try:
        with show_waiting(f"compiling {name}: {size}"):
            return compile_step(spec, target.mesh, target.options)
    except OverflowError as error:  # sizes that JAX, or libtpu, cannot count
        check_memory(spec, target.mesh, step.names.rows, target.place.chip.hbm)
        raise ValueError(str(error)) from error


def _exit_too_large(message: str) -> NoReturn:
    print(f"undo-jax: {message}", file=sys.stderr)
    sys.exit(TOO_LARGE)


def _print_all(source: StepSource, target: _Target, as_json: bool) -> None:
    """Print a line for each program as it is compiled; exit status 3 if one does not fit."""
    place, mesh = target.place, target.mesh
    programs = []
    if not as_json:
        shape = mesh_text(MeshShape(**mesh.shape)) if mesh.size > 1 else "of one chip"
        print(f"{source.name} on {place}: {place.chips} chips, mesh {shape}\n")
        print("stage     models              rows    GiB  bound          ms a step")
    for step in source.steps:
        facts = {**describe(step.spec, place, mesh, _compile(step, target)), **step.title}
        programs.append(facts)
        if not as_json:
            speed = "DOES NOT FIT"
            if facts["fits"]:
                speed = f"{facts['bound']:<12} {facts['seconds']['step'] * 1e3:>11.3g}"
            names = f"{facts['stage']:<9} {shortened(facts['models']):<18}"
            size = f"{facts['rows']:>5}  {facts['hbm']['total'] / GIB:>5.2f}"
            print(f"{names} {size}  {speed}", flush=True)
    if as_json:
        print(dumps(programs, indent=1))
    if large := [facts["stage"] for facts in programs if not facts["fits"]]:
        _exit_too_large(
            f"{place} is too small for {len(large)} of {len(programs)} programs: try --stage "
            f"{large[0]} for advice"
        )


def _print_search(step: TitledStep, target: _Target, as_json: bool) -> None:
    """Print the largest batch for each policy, the fastest first."""
    place, mesh = target.place, target.mesh

    def compile_variant(spec: TrainSpec) -> Step:
        return _compile(replace(step, spec=spec), target)

    def print_attempt(policy: str, rows: int, compiled: Step) -> None:
        verdict = "fits" if compiled.cost else "too large"
        console.print(
            f"remat {policy}, {format_number(rows / mesh.shape['tensor'])} rows a chip at once: "
            f"{compiled.memory.total / GIB:.2f} GiB, {verdict}",
            highlight=False,
        )

    batches = [
        {**step.title, **describe(best.work, place, mesh, best.step)}
        for best in largest_batches(step.spec, mesh, place.chip.hbm, compile_variant, print_attempt)
    ]
    batches.sort(key=lambda facts: -facts["tokens_per_second"])
    if as_json:
        print(dumps(batches, indent=1))
    elif batches:
        print("remat  rows a chip    GiB  bound         tokens/s at most")
        for facts in batches:
            print(
                f"{facts['remat']:<5}  {format_number(facts['rows_per_chip']):>11}  "
                f"{facts['hbm']['total'] / GIB:>5.2f}  {facts['bound']:<12}  "
                f"{format_number(facts['tokens_per_second']):>16}"
            )
    if not batches:
        _exit_too_large(
            f"not one row a chip fits {place}: give more chips (--topology), or more of fsdp and "
            "tensor (--mesh)"
        )

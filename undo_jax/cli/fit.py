"""`undo-jax fit EXPERIMENT --topology v5e:4x4`, or `fit --preset 2B --topology v5e:4x4`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from json import dumps

import jax
from jax.sharding import Mesh
from tyro.conf import OmitArgPrefixes

from undo_jax.cli import step_source
from undo_jax.cli.flags import Further, MaybeExperiment, MaybeText, Name, Switch
from undo_jax.cli.plan import shortened
from undo_jax.cli.step_source import NO_PRESETS, Asked, Presets, Program, Source
from undo_jax.fit import chips
from undo_jax.fit.advice import advice, check
from undo_jax.fit.chips import GIB, Slice
from undo_jax.fit.facts import describe, table
from undo_jax.fit.flags import arguments
from undo_jax.fit.flags import flags as presets_of
from undo_jax.fit.least import check_memory
from undo_jax.fit.search import search as largest
from undo_jax.fit.step import Step, compile_step, mesh_on, mesh_text, on_chips, suggestion
from undo_jax.logs.log import console, short, waiting
from undo_jax.runner.load_experiment import errors_of_users
from undo_jax.runtime.mesh import MeshShape, parse_mesh
from undo_jax.training.train_spec import TrainSpec

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
    flags: Further = (),
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
    compiler = dict(presets_of(xla_flags)) if xla_flags is not None else {}
    if compiler and place.chip.platform != "tpu":
        raise ValueError(f"XLA flags {xla_flags!r} are for TPU: {place} needs none")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # loading from it needs a chip
    source = find(Asked(experiment, stage, all, search, presets), flags)
    given = parse_mesh(mesh) if mesh is not None else source.mesh
    chosen = mesh_on(place, given or suggestion(place))
    if all:
        return _all(source, place, chosen, compiler, json)
    program = step_source.first(source, chosen)
    if search:
        return _search(program, place, chosen, compiler, json)
    _once(program, place, chosen, compiler, json)


def find(asked: Asked, flags: Sequence[str]) -> Source:
    """What is asked for, with models as they are on chips."""
    source = step_source.find(asked, flags)
    programs = [replace(one, work=on_chips(one.work)) for one in source.programs]
    return replace(source, programs=programs)


def _once(
    program: Program, place: Slice, mesh: Mesh, options: Mapping[str, str], as_json: bool
) -> None:
    """Print what is known of one step; exit status 3 and advice if it does not fit."""
    step = _compiled(program, place, mesh, options)
    facts = {**program.title, **describe(program.work, place, mesh, step)}
    print(dumps(facts, indent=1) if as_json else table(facts))
    if not facts["fits"]:
        said = advice(program.names, program.work, place, mesh, step)
        print(f"undo-jax: {said}", file=sys.stderr)
        sys.exit(TOO_LARGE)


def _compiled(program: Program, place: Slice, mesh: Mesh, options: Mapping[str, str]) -> Step:
    """The compiled step. Raises ValueError, naming the flag, for sizes that are not possible."""
    work, names = program.work, program.names
    check(work, mesh, names)
    what = f"{program.title['stage']} of {program.title['experiment']} for {place}"
    size = f"{work.training.batch_size} rows, remat {getattr(work.lm, 'remat', 'none')}"
    try:
        with waiting(f"compiling {what}: {size}"):
            return compile_step(work, mesh, options)
    except OverflowError as error:  # sizes that JAX, or libtpu, cannot count
        check_memory(work, mesh, names.rows, place.chip.hbm)
        raise ValueError(str(error)) from error


def xla_flags(name: Name) -> None:
    """Print a preset of XLA flags, for LIBTPU_INIT_ARGS.

    Args:
        name: overlap, sparse_cores or memory.
    """
    print(arguments(name))


def _all(
    source: Source, place: Slice, mesh: Mesh, options: Mapping[str, str], as_json: bool
) -> None:
    """Print a line for each program as it is compiled; exit status 3 if one does not fit."""
    found = []
    if not as_json:
        shape = mesh_text(MeshShape(**mesh.shape)) if mesh.size > 1 else "of one chip"
        print(f"{source.name} on {place}: {place.chips} chips, mesh {shape}\n")
        print("stage     models              rows    GiB  bound          ms a step")
    for program in source.programs:
        step = _compiled(program, place, mesh, options)
        facts = {**describe(program.work, place, mesh, step), **program.title}
        found.append(facts)
        if not as_json:
            speed = "DOES NOT FIT"
            if facts["fits"]:
                speed = f"{facts['bound']:<12} {facts['seconds']['step'] * 1e3:>11.3g}"
            names = f"{facts['stage']:<9} {shortened(facts['models']):<18}"
            size = f"{facts['rows']:>5}  {facts['hbm']['total'] / GIB:>5.2f}"
            print(f"{names} {size}  {speed}", flush=True)
    if as_json:
        print(dumps(found, indent=1))
    if large := [facts["stage"] for facts in found if not facts["fits"]]:
        said = f"{place} is too small for {len(large)} of {len(found)} programs"
        print(f"undo-jax: {said}: try --stage {large[0]} for advice", file=sys.stderr)
        sys.exit(TOO_LARGE)


def _search(
    program: Program, place: Slice, mesh: Mesh, options: Mapping[str, str], as_json: bool
) -> None:
    """Print the largest batch for each policy, the fastest first."""

    def compiled(work: TrainSpec) -> Step:
        return _compiled(replace(program, work=work), place, mesh, options)

    def tell(policy: str, rows: int, step: Step) -> None:
        verdict = "fits" if step.cost else "too large"
        console.print(
            f"remat {policy}, {short(rows / mesh.shape['tensor'])} rows a chip at once: "
            f"{step.memory.total / GIB:.2f} GiB, {verdict}",
            highlight=False,
        )

    found = [
        {**program.title, **describe(one.work, place, mesh, one.step)}
        for one in largest(program.work, mesh, place.chip.hbm, compiled, tell)
    ]
    found.sort(key=lambda facts: -facts["tokens_per_second"])
    if as_json:
        print(dumps(found, indent=1))
    elif found:
        print("remat  rows a chip    GiB  bound         tokens/s at most")
        for facts in found:
            print(
                f"{facts['remat']:<5}  {short(facts['rows_per_chip']):>11}  "
                f"{facts['hbm']['total'] / GIB:>5.2f}  {facts['bound']:<12}  "
                f"{short(facts['tokens_per_second']):>16}"
            )
    if not found:
        print(
            f"undo-jax: not one row a chip fits {place}: give more chips (--topology), or more of "
            "fsdp and tensor (--mesh)",
            file=sys.stderr,
        )
        sys.exit(TOO_LARGE)

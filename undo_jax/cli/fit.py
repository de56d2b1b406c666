"""`undo-jax fit EXPERIMENT --topology v5e:4x4`."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from undo_jax import graph
from undo_jax.cli import experiment as experiments
from undo_jax.cli.flags import Name
from undo_jax.cli.plan import shortened
from undo_jax.experiment import Experiment
from undo_jax.experiment_file import errors_of_users, load
from undo_jax.fit import chips
from undo_jax.fit.chips import GIB, Chip, Slice
from undo_jax.fit.flags import PRESETS, arguments, flags
from undo_jax.fit.least import check_work
from undo_jax.fit.roofline import roofline
from undo_jax.fit.search import REMAT, search
from undo_jax.fit.step import (
    Step,
    compile_step,
    mesh_on,
    on_chips,
    rows_per_chip,
)
from undo_jax.graph import Work
from undo_jax.log import console, short
from undo_jax.memory import text as memory
from undo_jax.mesh import parse_mesh

TOO_LARGE = 3  # exit status of a step that does not fit


@errors_of_users()
def fit(words: list[str]) -> None:
    """Does a stage fit a TPU slice, or GPUs, and how fast is it at best? Neither is needed.

    Its train step is compiled ahead of time for them. Exit status 3: it does not fit, and one line
    says what to change. Further flags set any scalar of the experiment, e.g. --model.remat
    full --distill.training.batch-size 512.
    """
    parser = argparse.ArgumentParser(
        prog="undo-jax fit", allow_abbrev=False, description=fit.__doc__
    )
    parser.add_argument("experiment", help="a Python file that defines `experiment`")
    parser.add_argument("--topology", required=True, help="e.g. v5e:4x4, v5e-16 or h100:8")
    parser.add_argument("--stage", help="the kind of recipe (default: distill)")
    parser.add_argument(
        "--all", action="store_true", help="every program of the experiment, a line each"
    )
    parser.add_argument("--mesh", help="e.g. data=4,fsdp=4 (default: the experiment's)")
    parser.add_argument(
        "--search", action="store_true", help="find the largest batch for each remat policy"
    )
    parser.add_argument("--xla-flags", help="compile for TPU with a preset: " + ", ".join(PRESETS))
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.error = experiments.refuse
    options, overrides = parser.parse_known_args(words)
    place, preset = chips.find(options.topology), options.xla_flags
    compiler = dict(flags(preset)) if preset else {}
    if compiler and place.chip.platform != "tpu":
        raise ValueError(f"XLA flags {preset!r} are for TPU: {place} needs none")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # loading from it needs a chip
    knobs = experiments.override(load(options.experiment), overrides)
    experiment = knobs.graph()
    shape = parse_mesh(options.mesh) if options.mesh else experiment.mesh
    mesh = mesh_on(place, shape)
    if options.all:
        if options.stage or options.search:
            raise ValueError("--all is every stage as it is: leave out --stage and --search")
        return _all(experiment, place, mesh, compiler, options.json)
    stage = options.stage or "distill"
    trains = graph.largest(experiment.recipes().values(), stage, experiment.setting)
    work = on_chips(trains)
    title = {"experiment": experiment.name, "stage": stage}
    try:
        if options.search:
            return _search(title, work, place, mesh, compiler, options.json)
        step = compile_step(work, mesh, compiler)
    except OverflowError:  # sizes that JAX cannot count
        check_work(work, mesh, f"{stage}.training.", place.chip.hbm)
        raise
    facts = {**title, **describe(work, place, mesh, step)}
    print(json.dumps(facts, indent=1) if options.json else table(facts))
    if not facts["fits"]:
        lms = getattr(knobs, "lms", {})
        model = next((name for name, lm in lms.items() if lm == trains.lm), "model")
        said = advice(stage, model, work, place, mesh, step)
        print(f"undo-jax: {said}", file=sys.stderr)
        sys.exit(TOO_LARGE)


def xla_flags(name: Name) -> None:
    """Print a preset of XLA flags, for LIBTPU_INIT_ARGS.

    Args:
        name: overlap or memory.
    """
    print(arguments(name))


def describe(work: Work, place: Slice, mesh: Mesh, step: Step) -> dict[str, Any]:
    """All that is known of a step, as JSON; no speed if it does not fit."""
    facts = {
        "topology": str(place),
        "chips": place.chips,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "rows": work.training.batch_size,
        "rows_per_chip": rows_per_chip(work.training, mesh),
        "accumulation": work.training.accumulation,
        "row_length": work.row_length,
        "remat": getattr(work.lm, "remat", "none"),
        "fits": step.cost is not None,
        "hbm": {
            **vars(step.memory),
            "shared": step.memory.shared,
            "total": step.memory.total,
            "available": place.chip.hbm,
        },
    }
    if step.cost is None:
        return facts
    line = roofline(step.cost, place.chip)
    return facts | {
        "flops": step.cost.flops,
        "memory_bytes": step.cost.memory,
        "collective_bytes": dict(step.cost.collectives),
        "seconds": {**line._asdict(), "step": line.seconds},
        "bound": line.bound(place.chip),
        "tokens_per_second": mesh.shape["sweep"] * work.tokens / line.seconds,
    }


def table(facts: Mapping[str, Any]) -> str:
    """What `describe` found, in 80 columns."""
    sizes = facts["hbm"]
    hbm = {name: memory(abs(size)) for name, size in sizes.items()}
    mesh = ",".join(f"{axis}={size}" for axis, size in facts["mesh"].items()) or "of one chip"
    parts = f", {facts['accumulation']} parts" if facts["accumulation"] > 1 else ""
    verdict = "fits" if facts["fits"] else "DOES NOT FIT"
    lines = [
        f"{facts['stage']} of {facts['experiment']} on {facts['topology']}: "
        f"{facts['chips']} chips, mesh {mesh}",
        f"{facts['rows']} rows of {facts['row_length']} tokens ({facts['rows_per_chip']} a chip"
        f"{parts}), remat {facts['remat']}",
        "",
        f"HBM of a chip   {hbm['total']} of {hbm['available']}: {verdict}",
        f"  arguments     {hbm['arguments']}",
        f"  temporaries   {hbm['temporaries']}",
    ]
    if sizes["aliased"]:  # unknown for a program that the compiler refuses
        lines[-2] += f", {hbm['aliased']} of it updated in place"
        lines.append(f"  other         {hbm['outputs']} outputs, {hbm['code']} program")
    if sizes["shared"] > 0:
        lines.append(f"  not at once  -{hbm['shared']}: some take the place of what is done with")
    elif sizes["shared"] < 0:
        lines.append(f"  in VMEM       {hbm['shared']}: alive as well, but not in HBM")
    if not facts["fits"]:
        return "\n".join(lines)
    seconds = {name: f"{short(value * 1e3):>5} ms" for name, value in facts["seconds"].items()}
    received = facts["collective_bytes"]
    names = [f"{name:<14}" for name in chips.find(facts["topology"]).chip.parts]
    lines += [
        "A step, at the chip's peak",
        f"  {names[0]}{seconds['mxu']}   {short(facts['flops'])} FLOPs",
        f"  {names[1]}{seconds['hbm']}   {short(facts['memory_bytes'])}B read or written",
        f"  {names[2]}{seconds['ici']}   {short(sum(received.values()))}B received",
        *(f"    {kind:<23}{short(received[kind])}B" for kind in sorted(received)),
        f"bound by {facts['bound']}: at most {short(facts['tokens_per_second'])} tokens/s",
    ]
    return "\n".join(lines)


def advice(stage: str, model: str, work: Work, place: Slice, mesh: Mesh, step: Step) -> str:
    """One line: how much memory is missing, what to change; `model` is the model's knob."""
    training, chip = work.training, place.chip
    rows = rows_per_chip(training, mesh) // training.accumulation
    total, changes = step.memory.total, []
    if getattr(work.lm, "remat", REMAT[-1]) != REMAT[-1]:
        changes.append(f"--{model}.remat {REMAT[-1]}")
    parts = next((n for n in range(2, rows + 1) if rows % n == 0 and _enough(step, chip, n)), rows)
    if parts > 1:
        changes.append(f"--{stage}.training.accumulation {parts * training.accumulation}")
        changes.append(f"--{stage}.training.batch-size {training.batch_size // parts}")
    if mesh.shape["fsdp"] * mesh.shape["tensor"] < place.chips:
        changes.append(f"--mesh fsdp={place.chips}")
    larger = [name for name in chip.topologies if chips.count(name) > place.chips]
    if larger:
        changes.append(f"more chips (--topology {place.kind}:{larger[0]})")
    if roomier := chips.roomier(place):
        changes.append(f"chips with more memory ({', '.join(roomier)})")
    return (
        f"this step needs {memory(total)} a chip and {place} has {memory(chip.hbm)}, "
        f"{memory(total - chip.hbm)} too little: try {' or '.join(changes) or 'a smaller model'}"
    )


def _enough(step: Step, chip: Chip, parts: int) -> bool:
    """Whether it would fit if temporaries shrank in proportion to the rows."""
    return step.memory.arguments + step.memory.temporaries / parts <= chip.hbm


def _all(
    experiment: Experiment, place: Slice, mesh: Mesh, options: Mapping[str, str], as_json: bool
) -> None:
    """Print a line for each program as it is compiled; exit status 3 if one does not fit."""
    found = []
    if not as_json:
        shape = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
        print(f"{experiment.name} on {place}: {place.chips} chips, mesh {shape or 'of one chip'}\n")
        print("stage     models              rows    GiB  bound          ms a step")
    for names, recipe in _programs(experiment):
        trains = on_chips(graph.work(recipe, experiment.setting))
        title = {"experiment": experiment.name, "stage": recipe.kind, "models": names}
        facts = {**title, **describe(trains, place, mesh, compile_step(trains, mesh, options))}
        found.append(facts)
        if not as_json:
            speed = "DOES NOT FIT"
            if facts["fits"]:
                speed = f"{facts['bound']:<12} {facts['seconds']['step'] * 1e3:>11.3g}"
            size = f"{facts['rows']:>5}  {facts['hbm']['total'] / GIB:>5.2f}"
            print(f"{recipe.kind:<9} {shortened(names):<18} {size}  {speed}", flush=True)
    if as_json:
        print(json.dumps(found, indent=1))
    if large := [facts["stage"] for facts in found if not facts["fits"]]:
        said = f"{place} is too small for {len(large)} of {len(found)} programs"
        print(f"undo-jax: {said}: try --stage {large[0]} for advice", file=sys.stderr)
        sys.exit(TOO_LARGE)


def _programs(experiment: Experiment) -> list[tuple[list[str], Any]]:
    """The programs of an experiment: the models that each trains or attacks, and one of them."""
    names = {id(recipe): name for (name, _), recipe in experiment.recipes().items()}
    found: dict[str, list[Any]] = {}
    for recipe in graph.ancestry(experiment.recipes().values()):
        if graph.is_trained(recipe):
            found.setdefault(graph.group_key(recipe), []).append(recipe)  # type: ignore[arg-type]
    return [
        (list(dict.fromkeys(names.get(id(r), "an ancestor") for r in some)), some[0])
        for some in found.values()
    ]


def _search(
    title: Mapping[str, str],
    work: Work,
    place: Slice,
    mesh: Mesh,
    options: Mapping[str, str],
    as_json: bool,
) -> None:
    """Print the largest batch for each policy, the fastest first."""

    def tell(policy: str, rows: int, step: Step) -> None:
        verdict = "fits" if step.cost else "too large"
        console.print(
            f"remat {policy}, {rows} rows a chip at once: "
            f"{step.memory.total / GIB:.2f} GiB, {verdict}",
            highlight=False,
        )

    found = [
        {**title, **describe(one.work, place, mesh, one.step)}
        for one in search(work, mesh, options, tell)
    ]
    found.sort(key=lambda facts: -facts["tokens_per_second"])
    if as_json:
        print(json.dumps(found, indent=1))
    elif found:
        print("remat  rows a chip    GiB  bound         tokens/s at most")
        for facts in found:
            print(
                f"{facts['remat']:<5}  {facts['rows_per_chip']:>11}  "
                f"{facts['hbm']['total'] / GIB:>5.2f}  {facts['bound']:<12}  "
                f"{short(facts['tokens_per_second']):>16}"
            )
    if not found:
        print(f"undo-jax: not one row a chip fits {place}: more chips, or more of fsdp and tensor",
              file=sys.stderr)  # fmt: skip
        sys.exit(TOO_LARGE)

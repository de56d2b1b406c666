"""`undo-jax fit EXPERIMENT --topology v5e:4x4`, or `fit --preset 2B --topology v5e:4x4`."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from undo_jax import graph
from undo_jax.cli import fit_source
from undo_jax.cli.fit_source import Source
from undo_jax.cli.flags import Name
from undo_jax.cli.plan import shortened
from undo_jax.experiment import Experiment
from undo_jax.experiment_file import errors_of_users
from undo_jax.fit import chips
from undo_jax.fit.advice import advice, check_rows
from undo_jax.fit.chips import GIB, Slice
from undo_jax.fit.facts import describe, table
from undo_jax.fit.flags import arguments, flags
from undo_jax.fit.least import check_work
from undo_jax.fit.search import search, variant
from undo_jax.fit.step import Step, compile_step, mesh_on, on_chips, suggestion
from undo_jax.graph import Work
from undo_jax.log import console, short
from undo_jax.mesh import parse_mesh

TOO_LARGE = 3  # exit status of a step that does not fit


@errors_of_users()
def fit(words: list[str]) -> None:
    """Does a step fit a TPU slice, or GPUs, and how fast is it at best? Neither is needed.

    The train step of an experiment's stage is compiled ahead of time for them, or with --preset the
    distillation of a model of that size, which needs no experiment. Exit status 3: it does not fit,
    and one line says what to change. Further flags set any scalar of the experiment, e.g.
    --model.remat full --distill.training.batch-size 512.
    """
    options, rest = fit_source.parse(words, fit.__doc__)
    place, preset = chips.find(options.topology), options.xla_flags
    compiler = dict(flags(preset)) if preset else {}
    if compiler and place.chip.platform != "tpu":
        raise ValueError(f"XLA flags {preset!r} are for TPU: {place} needs none")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # loading from it needs a chip
    source = fit_source.find(options, rest)
    given = parse_mesh(options.mesh) if options.mesh else source.mesh
    mesh = mesh_on(place, given or parse_mesh(suggestion(place)))
    if source.experiment and options.all:
        return _all(source.experiment, place, mesh, compiler, options.json)
    work = source.work
    if not source.sized:
        work = variant(work, mesh, getattr(work.lm, "remat", "none"), 1)
    if options.search:
        return _search(source.title, work, place, mesh, compiler, options.json)
    _once(source, work, place, mesh, compiler, options.json)


def _once(
    source: Source,
    work: Work,
    place: Slice,
    mesh: Mesh,
    options: Mapping[str, str],
    as_json: bool,
) -> None:
    """Print what is known of one step; exit status 3 and advice if it does not fit."""
    check_rows(work, mesh, source.names)
    try:
        step = compile_step(work, mesh, options)
    except OverflowError:  # sizes that JAX cannot count
        check_work(work, mesh, source.names.rows, place.chip.hbm)
        raise
    facts = {**source.title, **describe(work, place, mesh, step)}
    print(json.dumps(facts, indent=1) if as_json else table(facts))
    if not facts["fits"]:
        print(f"undo-jax: {advice(source.names, work, place, mesh, step)}", file=sys.stderr)
        sys.exit(TOO_LARGE)


def xla_flags(name: Name) -> None:
    """Print a preset of XLA flags, for LIBTPU_INIT_ARGS.

    Args:
        name: overlap or memory.
    """
    print(arguments(name))


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
            f"remat {policy}, {short(rows / mesh.shape['tensor'])} rows a chip at once: "
            f"{step.memory.total / GIB:.2f} GiB, {verdict}",
            highlight=False,
        )

    found = [
        {**title, **describe(one.work, place, mesh, one.step)}
        for one in search(work, mesh, place.chip.hbm, options, tell)
    ]
    found.sort(key=lambda facts: -facts["tokens_per_second"])
    if as_json:
        print(json.dumps(found, indent=1))
    elif found:
        print("remat  rows a chip    GiB  bound         tokens/s at most")
        for facts in found:
            print(
                f"{facts['remat']:<5}  {short(facts['rows_per_chip']):>11}  "
                f"{facts['hbm']['total'] / GIB:>5.2f}  {facts['bound']:<12}  "
                f"{short(facts['tokens_per_second']):>16}"
            )
    if not found:
        print(f"undo-jax: not one row a chip fits {place}: more chips, or more of fsdp and tensor",
              file=sys.stderr)  # fmt: skip
        sys.exit(TOO_LARGE)

"""`undo-jax run EXPERIMENT` and `undo-jax report WORKDIR`."""

import argparse
import dataclasses
import shlex
import typing
from collections.abc import Sequence

import jax
from etils import epath
from tyro.conf import AvoidSubcommands

from undo_jax import experiment as experiments
from undo_jax import report as reporting
from undo_jax import signals, sinks
from undo_jax.cli import plan as planning
from undo_jax.cli.devices import Processes, prepare_devices
from undo_jax.cli.flags import Workdir, parse
from undo_jax.durable import writing
from undo_jax.experiment import Experiment
from undo_jax.experiment_file import Knobs, errors_of_users, load
from undo_jax.log import Sink, console, results
from undo_jax.mesh import parse_mesh
from undo_jax.plan import plan
from undo_jax.report import paper_page

HAND_WRITTEN = ("name", "seeds", "together", "mesh", "saving")  # what flags change of a graph


@errors_of_users()
def run(words: list[str]) -> None:
    """Run an experiment, or go on with it; finished stages are skipped.

    SIGTERM (a preemption) and Ctrl-C save the training under way; the same command then goes on
    from that step. Exit status: 0 done, 2 bad input or a failure told in one line, 75 stopped by
    SIGTERM or because another process died, 130 by Ctrl-C (a second one stops at once). A training
    that is killed goes on from its last save, see --saving.minutes.

    Further flags set any scalar of the experiment, e.g. --seeds 0 1: give its file and --help to
    see them.
    """
    parser = argparse.ArgumentParser(
        prog="undo-jax run", add_help=False, allow_abbrev=False, description=run.__doc__
    )
    parser.add_argument("experiment", nargs="?", help="a Python file that defines `experiment`")
    parser.add_argument("--workdir", help="where artifacts go (default: runs/NAME); may be gs://")
    parser.add_argument("--stage", help="only models of this kind, e.g. distill")
    parser.add_argument("--model", help="only this model, what it is made from, and its attacks")
    parser.add_argument("--mesh", help="devices along each axis, e.g. data=4,fsdp=2; -1: all left")
    parser.add_argument(
        "--sinks",
        nargs="*",
        default=(),
        metavar="NAME",
        help="where records go besides, e.g. tensorboard wandb; the file's own sinks stay",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="train and write nothing: print what would be made and reused, its time and memory",
    )
    parser.add_argument(
        "--cache-teachers",
        action="store_true",
        help="store a teacher's hidden states in the workdir, once for all of its students",
    )
    add_processes(parser)
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this, and every scalar's flag"
    )
    parser.error = refuse
    options, overrides = parser.parse_known_args(words)
    if options.help:
        parser.print_help()
        overrides.append("--help")
    if options.experiment is None:
        if options.help:
            return
        raise ValueError("which experiment? e.g. undo-jax run experiments/quickstart.py")
    prepare_devices(processes(options))
    experiment: typing.Any = load(options.experiment)
    if options.mesh is not None:
        experiment = dataclasses.replace(experiment, mesh=parse_mesh(options.mesh))
    made_of = graph_with(experiment, overrides)
    named = tuple(map(sinks.find, options.sinks))
    made_of = dataclasses.replace(made_of, sinks=beside(made_of.sinks, named))
    workdir = options.workdir or f"runs/{made_of.name}"
    if options.plan:
        signals.save_nothing()
        planned = plan(made_of, workdir, options.stage, options.model)
        if jax.process_index() == 0:
            results.print(planning.table(made_of.name, planned))
        return
    how = options.stage, options.model, options.cache_teachers
    experiments.run(made_of, workdir, *how, shlex.join(["undo-jax", "run", *words]))
    if options.stage in (None, "relearn") and (empty := _report(workdir, made_of.name)):
        console.print(empty, soft_wrap=True)


def beside(own: Sequence[Sink], named: Sequence[Sink]) -> tuple[Sink, ...]:
    """A file's own sinks, and of those that a flag names the ones that it does not have."""
    known = {getattr(sink, "func", sink) for sink in own}
    return (*own, *(sink for sink in dict.fromkeys(named) if sink not in known))


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Flags for one of several processes."""
    parser.add_argument(
        "--distributed", action="store_true", help="one of several processes: TPU pod, Slurm, GKE"
    )
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where they find no other")
    parser.add_argument("--processes", type=int, help="with --coordinator: how many there are")
    parser.add_argument("--process", type=int, help="with --coordinator: which one this is, from 0")


def processes(options: argparse.Namespace) -> Processes:
    """What those flags say."""
    found = options.distributed, options.coordinator, options.processes, options.process
    return Processes(*found)


def report(workdir: Workdir) -> None:
    """Write the reports of all experiments in a workdir again, from their logs.

    Args:
        workdir: the folder of their runs; may be gs://.
    """
    names = reporting.names(workdir)
    if not names:
        raise FileNotFoundError(f"{workdir} holds no finished run: give the workdir of one")
    empty, wrong = [], []
    for name in names:
        try:
            empty += filter(None, [_report(workdir, name)])
        except ValueError as error:  # of a damaged file: the others are written all the same
            wrong.append(str(error))
    if len(empty) + len(wrong) == len(names) or wrong:
        raise ValueError("; ".join([*wrong, *empty]))
    for reason in empty:
        console.print(reason, soft_wrap=True)


def figures(workdir: Workdir) -> None:
    """Draw the paper's figures from the logs of experiments/paper, with the numbers and claims.

    WORKDIR/figures/ gets each figure as PNG, SVG and CSV, and a page of all. Figures that cannot be
    drawn are named, with the reason, and the status is 2.

    Args:
        workdir: the folder of their runs; may be gs://.
    """
    with writing(workdir):
        made = paper_page.write(workdir)
    for one in made.drawn:
        results.print(paper_page.told(one), soft_wrap=True)
    results.print(f"\n{paper_page.BRACKETS}", soft_wrap=True)
    place = epath.Path(workdir) / paper_page.FOLDER / "index.html"
    console.print(f"figures: {place}", soft_wrap=True)
    if missing := paper_page.undrawn(made):
        raise ValueError("; ".join(missing))


def _report(workdir: str, name: str) -> str:
    """Write a report, or say why there is nothing to write."""
    if jax.process_index() == 0:
        try:
            with writing(workdir):
                written = reporting.write(workdir, name)
        except reporting.EmptyError as error:
            return str(error)
        results.print(reporting.table(written))
        place = epath.Path(workdir) / f"report-{name}" / "index.html"
        console.print(f"report: {place}", soft_wrap=True)
    return ""


def graph_with(experiment: Knobs, flags: list[str]) -> Experiment:
    """The graph with scalars set by flags.

    Raises ValueError for a mistake in them; it names no line of the experiment's file if that has a
    graph without them.
    """
    try:
        return override(experiment, flags).graph()
    except ValueError as error:
        if not flags:
            raise
        experiment.graph()
        raise ValueError(str(error)) from None


def override(experiment: Knobs, flags: list[str]) -> Knobs:
    """The experiment with scalars set by flags. Raises ValueError for a mistake in them.

    A graph that is written by hand has flags for its name, seeds, mesh and saves alone.
    """
    names = HAND_WRITTEN if isinstance(experiment, Experiment) else None
    flagged = _flagged(experiment, names)
    try:
        changed = parse(
            type(flagged), flags, "undo-jax run", default=flagged, config=(AvoidSubcommands,)
        )
    except ValueError as error:
        raise ValueError(_second_value(str(error), flags) or str(error)) from error
    return _rebuilt(experiment, changed)


def _second_value(said: str, flags: Sequence[str]) -> str:
    """What to say of a flag that got two values, e.g. of a pattern; nothing of other mistakes."""
    for flag, first, second in zip(flags, flags[1:], flags[2:], strict=False):
        bare = not first.startswith("-") and not second.startswith("-")
        unknown = said.replace(" ", "").startswith(f"Unrecognizedoptions:{second}")
        if flag.startswith("--") and bare and unknown:
            return f"{flag} takes one value, but got {first} and {second}: give one of them"
    return ""


def _flagged(value: typing.Any, names: Sequence[str] | None = None) -> typing.Any:
    """A dataclass of which each part has the type that it is of, for the parser.

    A field whose type is a protocol has no flags in itself, its value has. Fields other than
    `names` are left out.
    """
    types, parts = typing.get_type_hints(type(value)), []
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if names is not None and field.name not in names:
            continue
        if dataclasses.is_dataclass(part):
            part = _flagged(part)
            parts.append((field.name, type(part), part))
        else:
            parts.append((field.name, types[field.name], part))
    if [(name, kind) for name, kind, _ in parts] == list(types.items()):
        return value
    shape = dataclasses.make_dataclass(
        type(value).__name__, [(name, kind) for name, kind, _ in parts], frozen=True
    )
    return shape(**{name: part for name, _, part in parts})


def _rebuilt(value: typing.Any, changed: typing.Any) -> typing.Any:
    """The value with all that `changed`, which `_flagged` has made and the parser changed, says."""
    if type(value) is type(changed) or not dataclasses.is_dataclass(changed):
        return changed
    parts = [field.name for field in dataclasses.fields(changed)]
    made = {name: _rebuilt(getattr(value, name), getattr(changed, name)) for name in parts}
    return dataclasses.replace(value, **made)


def refuse(message: str) -> typing.NoReturn:
    """What a parser does with words that do not fit."""
    raise ValueError(message)

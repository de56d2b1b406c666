"""`undo-jax run EXPERIMENT` and `undo-jax report WORKDIR`."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
from etils import epath
from tyro.conf import AvoidSubcommands, Fixed

from undo_jax import report as reporting
from undo_jax import scores as score_plugins
from undo_jax import sinks as sinking
from undo_jax.cli import plan as planning
from undo_jax.cli.devices import ALONE, Joined, prepare_devices
from undo_jax.cli.flags import (
    AsTyped,
    Further,
    MaybeExperiment,
    MaybeText,
    Switch,
    Texts,
    Workdir,
    parse,
    plain,
    sentence,
)
from undo_jax.logs.log import console, results
from undo_jax.report import paper_page
from undo_jax.runner import dry_run as planner
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import ExperimentSource, errors_of_users, load
from undo_jax.runtime import signals
from undo_jax.runtime.atomic_files import report_full_disk, write_atomically
from undo_jax.runtime.mesh import parse_mesh
from undo_jax.runtime.workdir_lock import lock_folder

SCALARS = "Scalars of the experiment, with the values that its file gives them."
PLACE = ("__module__", "__firstlineno__")  # of a class's source; the second from Python 3.13 on
Plugin = typing.TypeVar("Plugin", bound=Callable)  # a sink or a score
HAND_WRITTEN = ("name", "seeds", "together", "mesh", "saving")  # what flags can change


@errors_of_users()
def run(
    experiment: MaybeExperiment = None,
    /,
    *,
    workdir: MaybeText = None,
    stage: MaybeText = None,
    model: MaybeText = None,
    mesh: MaybeText = None,
    sinks: Texts = (),
    scores: Texts = (),
    plan: Switch = False,
    cache_teachers: Switch = False,
    processes: Joined = ALONE,
    flags: Further = (),
    command: AsTyped = "",
) -> None:
    """Run an experiment, or go on with it; finished stages are skipped.

    Further flags set any scalar of the experiment, e.g. --seeds 0 1: give its file and --help to
    see them. SIGTERM (a preemption) and Ctrl-C save the training under way; the same command then
    goes on from that step. A training that is killed goes on from its last save, see
    --saving.minutes. Exit status: 0 done, 2 bad input or a failure told in one line, 75 stopped by
    SIGTERM or because another process died, 130 by Ctrl-C (a second one stops at once).

    Args:
        experiment: a Python file that defines `experiment`.
        workdir: where artifacts go, runs/NAME by default; may be gs://.
        stage: only models of this kind, e.g. distill.
        model: only this model, what it is made from, and its attacks.
        mesh: devices along each axis, e.g. data=4,fsdp=2; -1: all that are left.
        sinks: where records go besides, e.g. tensorboard wandb; the file's own sinks stay.
        scores: scores of finished models besides the setting's, e.g. cross_entropy repetition.
        plan: train nothing: print what would be made and reused, its FLOPs, memory and known time.
        cache_teachers: store a teacher's hidden states in the workdir, once for all students.
    """
    if experiment is None:
        raise ValueError("which experiment? e.g. undo-jax run experiments/quickstart.py")
    prepare_devices(processes)
    made_of = load_with_flags(experiment, mesh, flags)
    named = tuple(map(sinking.find_sink, sinks))
    named_scores = tuple(map(score_plugins.find, scores))
    made_of = dataclasses.replace(
        made_of,
        sinks=beside(made_of.sinks, named),
        scores=beside(made_of.scores, named_scores),
    )
    workdir = workdir or f"runs/{made_of.name}"
    if plan:
        signals.expect_no_saves()
        planned = planner.plan_run(made_of, workdir, stage, model)
        if jax.process_index() == 0:
            results.print(planning.table(made_of.name, planned))
        return
    experiments.run(made_of, workdir, stage, model, cache_teachers, command)
    if stage in (None, "relearn") and (empty := _report(workdir, made_of.name)):
        console.print(empty, soft_wrap=True)


def beside(own: Sequence[Plugin], named: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """Returns a file's own sinks or scores, and those named by a flag that it does not have."""
    known = {getattr(sink, "func", sink) for sink in own}
    return (*own, *(sink for sink in dict.fromkeys(named) if sink not in known))


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
    with report_full_disk(workdir, "begins anew"):
        page = paper_page.write(workdir, _publish)
    for figure in page.drawn:
        results.print(paper_page.claims_text(figure), soft_wrap=True)
    results.print(f"\n{paper_page.BRACKETS}", soft_wrap=True)
    place = epath.Path(workdir) / paper_page.FOLDER / "index.html"
    console.print(f"figures: {place}", soft_wrap=True)
    if page.undrawn:
        raise ValueError("; ".join(page.notes))


def _publish(folder: epath.Path, contents: Mapping[str, bytes]) -> None:
    """Write files, each of which appears whole, also where the same command runs twice at once."""
    lock_folder(folder)
    for name, data in contents.items():
        write_atomically(folder / name, data)


def _report(workdir: str, name: str) -> str:
    """Write a report, or say why there is nothing to write."""
    if jax.process_index() == 0:
        try:
            with report_full_disk(workdir, "writes the report"):
                written = reporting.write(workdir, name, _publish)
        except reporting.EmptyError as error:
            return str(error)
        results.print(reporting.table(written))
        place = epath.Path(workdir) / f"report-{name}" / "index.html"
        console.print(f"report: {place}", soft_wrap=True)
    return ""


def load_with_flags(file: str, mesh: str | None, flags: Sequence[str]) -> Experiment:
    """Returns the experiment in a file, with scalars set by flags; see `experiment_with`.

    `mesh` is the value of the flag --mesh, e.g. data=4; None: the file's own mesh.
    """
    source: typing.Any = load(file)
    if mesh is not None:
        source = dataclasses.replace(source, mesh=parse_mesh(mesh))
    return experiment_with(source, flags)


def experiment_with(experiment: ExperimentSource, flags: Sequence[str]) -> Experiment:
    """Returns the experiment with scalars set by flags.

    Raises ValueError for a mistake in them; it names no line of the experiment's file if the file
    is valid without them.
    """
    try:
        return override(experiment, flags).experiment()
    except ValueError as error:
        if not flags or not _builds(experiment):
            raise
        raise ValueError(str(error)) from None


def _builds(experiment: ExperimentSource) -> bool:
    """Returns whether the experiment is valid without flags, e.g. its folders exist."""
    try:
        experiment.experiment()
    except Exception:
        return False
    return True


def override(
    experiment: ExperimentSource, flags: Sequence[str], program: str = "undo-jax run"
) -> ExperimentSource:
    """The experiment with scalars set by flags. Raises ValueError for a mistake in them.

    An `Experiment` that is written by hand has flags for its name, seeds, mesh and saves alone.
    """
    names = HAND_WRITTEN if isinstance(experiment, Experiment) else None
    flagged = _flagged(experiment, names)
    how = {"default": flagged, "description": SCALARS, "config": (AvoidSubcommands,)}
    try:
        changed = parse(type(flagged), [*flags], program, **how)
    except ValueError as error:
        raise ValueError(_second_value(str(error), flags) or str(error)) from error
    return _rebuilt(experiment, changed)


def show_flags(file: str, program: str) -> None:
    """Print the flags of an experiment."""
    override(load(file), ["--help"], f"{program} EXPERIMENT")


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
    `names` have none. It checks nothing, and stands where its class does, for the parser reads the
    comments beside its fields.
    """
    kind, given, parts = type(value), {}, []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(value):
        part, hint = getattr(value, field.name), hints[field.name]
        if names is not None and field.name not in names:
            hint = Fixed[hint]
        elif dataclasses.is_dataclass(part):
            part = _flagged(part)
            hint = type(part)
        else:
            hint = plain(hint, part)
        given[field.name] = part
        parts.append((field.name, hint, dataclasses.field(default_factory=partial(_same, part))))
    shape = dataclasses.make_dataclass(
        kind.__name__,
        parts,
        bases=(kind,),
        namespace={"__doc__": sentence(kind.__doc__), "__post_init__": lambda self: None},
        frozen=True,
        eq=False,
    )
    for name in filter(vars(kind).__contains__, PLACE):
        setattr(shape, name, getattr(kind, name))
    shape.__qualname__ = kind.__qualname__
    return shape(**given)


def _same(value: typing.Any) -> typing.Any:
    return value


def _rebuilt(value: typing.Any, changed: typing.Any) -> typing.Any:
    """The value with all that `changed`, which `_flagged` has made and the parser changed, says."""
    if not dataclasses.is_dataclass(changed):
        return changed
    before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    made = {name: _rebuilt(part, getattr(changed, name)) for name, part in before.items()}
    same = all(made[name] is part for name, part in before.items())
    return value if same else dataclasses.replace(value, **made)

"""`undo-jax run EXPERIMENT`."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax

from undo_jax import scores as score_plugins
from undo_jax import sinks as sink_plugins
from undo_jax.cli import devices, experiment_reports
from undo_jax.cli import plan as plan_table
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.experiment_flags import load_with_flags
from undo_jax.cli.flags import (
    ExperimentFlags,
    MaybeExperiment,
    MaybeText,
    Switch,
    Texts,
    TypedCommand,
)
from undo_jax.logs.log import console, results
from undo_jax.runner import dry_run
from undo_jax.runner import experiment as runner
from undo_jax.runner.load_experiment import errors_of_users
from undo_jax.runtime import signals

ORDER = 20
Plugin = TypeVar("Plugin", bound=Callable)  # a sink or a score


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
    flags: ExperimentFlags = (),
    command: TypedCommand = "",
) -> None:
    """Run an experiment, or resume it; finished stages are skipped.

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
    devices.prepare_devices(processes)  # before an experiment, which may compute
    graph = load_with_flags(experiment, mesh, flags)
    graph = dataclasses.replace(
        graph,
        sinks=_extend(graph.sinks, map(sink_plugins.find_sink, sinks)),
        scores=_extend(graph.scores, map(score_plugins.find_score, scores)),
    )
    workdir = workdir or f"runs/{graph.name}"
    if plan:
        signals.expect_no_saves()
        planned = dry_run.plan_run(graph, workdir, stage, model)
        if jax.process_index() == 0:
            results.print(plan_table.table(graph.name, planned))
        return
    runner.run(graph, workdir, stage, model, cache_teachers, command)
    if stage in (None, "relearn"):
        if reason := experiment_reports.write_report(workdir, graph.name):
            console.print(reason, soft_wrap=True)


def _extend(plugins: Sequence[Plugin], named: Iterable[Plugin]) -> tuple[Plugin, ...]:
    """Returns an experiment's sinks or scores, and the named ones that it does not have yet."""
    functions = {getattr(plugin, "func", plugin) for plugin in plugins}
    return (*plugins, *(plugin for plugin in dict.fromkeys(named) if plugin not in functions))

"""`undo-jax score WORKDIR NAME ...`."""

import functools
import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
from etils import epath
from tyro.conf import Positional, arg

from undo_jax import scores as score_plugins
from undo_jax.checks import check_distinct
from undo_jax.cli import devices
from undo_jax.cli.commands.run import run
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.experiment_flags import load_with_flags
from undo_jax.cli.flags import MaybeText, Switch, Workdir, parse
from undo_jax.evals.scoring import Score, score_name
from undo_jax.graph.model_graph import build_graph
from undo_jax.logs.log import results
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import errors_of_users, load
from undo_jax.runner.run_context import RunContext
from undo_jax.runner.score_models import ScoreCounts, score_models
from undo_jax.runtime.atomic_files import report_full_disk
from undo_jax.runtime.mesh import make_mesh_without_sweep
from undo_jax.runtime.workdir_lock import lock_workdir
from undo_jax.store.artifacts import is_finished
from undo_jax.workdir import inventory
from undo_jax.workdir.inventory import AGAIN, StoredExperiment

ORDER = 70
Names = Annotated[Positional[tuple[str, ...]], arg(metavar="NAMES", help_behavior_hint="")]


@errors_of_users()
def score(
    workdir: Workdir,
    names: Names,
    /,
    experiment: MaybeText = None,
    again: Switch = False,
    processes: Joined = ALONE,
) -> None:
    """Compute scores of all finished models in a workdir, and store them; nothing is trained.

    A score is a file of undo_jax/scores, or one of the experiment's own `scores`. Models that have
    it are left as they are. The experiments are those that the workdir's runs have recorded, with
    their flags.

    Args:
        workdir: the folder of the runs; may be gs://.
        names: scores to compute, e.g. cross_entropy repetition.
        experiment: the Python file that made the models, instead of the recorded commands.
        again: compute also what is stored, and replace it.
    """
    if not names:
        raise ValueError(f"which scores? choose from {', '.join(score_plugins.names())}")
    check_distinct("names", names)
    devices.prepare_devices(processes)  # before an experiment, which may compute
    listed = inventory.scan_experiments(workdir)  # raises FileNotFoundError without a workdir
    experiments = [load(experiment).experiment()] if experiment else _recorded(workdir, listed)
    # Find all scores before any is computed: an unknown name costs nothing.
    scores = [[_find(name, graph) for name in names] for graph in experiments]
    seen: set[str] = set()
    counts = [
        _score(graph, epath.Path(workdir), graph_scores, again, seen)
        for graph, graph_scores in zip(experiments, scores, strict=True)
    ]
    scored, complete, without_params = map(sum, zip(*counts, strict=True))
    if not scored + complete + without_params:
        raise FileNotFoundError(
            f"{workdir} holds no finished model of {experiment or 'its recorded runs'}: give the "
            "file that made them as --experiment, with the flags of its run written in"
        )
    if jax.process_index() == 0:
        message = f"{', '.join(names)}: computed for {scored} models, {complete} had all"
        message += f", {without_params} have no parameters any more" if without_params else ""
        results.print(f"{message}; `undo-jax report {workdir}` shows them", soft_wrap=True)


def _recorded(workdir: str, listed: Sequence[StoredExperiment]) -> list[Experiment]:
    """Returns the experiments that made a workdir, from the commands of its runs.

    Raises FileNotFoundError if the workdir has no experiment, and ValueError if one has no command
    whose file is there, e.g. one that was run from Python.
    """
    if not listed:
        raise FileNotFoundError(f"{workdir} holds no run: give the workdir of one")
    commands: dict[tuple[str, str | None, tuple[str, ...]], None] = {}
    for experiment in listed:
        if experiment.wrong:
            raise ValueError(experiment.wrong)
        runs = experiment.content.get("runs") or []
        if not isinstance(runs, list) or not all(isinstance(entry, dict) for entry in runs):
            raise ValueError(f"{experiment.path} is not as a run writes it (its runs): {AGAIN}")
        texts = [*(entry.get("command") for entry in runs), experiment.content.get("begun")]
        parsed = [_parse_run(str(text)) for text in texts if text]
        recorded = [command for command in parsed if command is not None]
        if not recorded:
            raise ValueError(
                f"{workdir} does not tell which file made {experiment.name}: give it as "
                "--experiment FILE"
            )
        commands |= dict.fromkeys(recorded)
    return [load_with_flags(*command) for command in commands]


def _parse_run(command: str) -> tuple[str, str | None, tuple[str, ...]] | None:
    """Returns the file, the mesh and the experiment's flags of a `run`; None without a file."""
    try:
        program, *words = shlex.split(command) or [""]
    except ValueError:  # not as a run records it
        return None
    file = next((word for word in words if word.endswith(".py")), None)
    if program != "undo-jax" or words[:1] != ["run"] or file is None or not Path(file).is_file():
        return None
    words.remove(file)
    arguments, flags = parse(_bind_run, [file, *words[1:]], "run", return_unknown_args=True)
    return file, arguments["mesh"], tuple(flags)


@functools.wraps(run)
def _bind_run(*arguments: Any, **keywords: Any) -> dict[str, Any]:
    """Returns the arguments of a `run` by name."""
    return inspect.signature(run).bind(*arguments, **keywords).arguments


def _find(name: str, experiment: Experiment) -> Score:
    """Returns the experiment's own score of a name, or the one in undo_jax/scores."""
    scores = {score_name(score): score for score in experiment.scores}
    return scores[name] if name in scores else score_plugins.find_score(name)


def _score(
    experiment: Experiment,
    workdir: epath.Path,
    scores: Sequence[Score],
    again: bool,
    seen: set[str],
) -> ScoreCounts:
    """Scores the finished models of an experiment whose folders are not in `seen`; adds them."""
    mesh, setting = make_mesh_without_sweep(experiment.mesh), experiment.setting
    with (
        jax.set_mesh(mesh),
        lock_workdir(workdir),
        report_full_disk(workdir, "goes on with the next model"),
    ):
        planned = build_graph(experiment.recipes().values(), experiment.seeds, setting, workdir)
        folders = {model.artifact.folder.name: model for model in planned.models}
        models = [
            model
            for name, model in folders.items()
            if name not in seen
            and is_finished(model.artifact, "is not scored, a run makes it again")
        ]
        seen |= {model.artifact.folder.name for model in models}
        scoring = RunContext(
            setting,
            mesh,
            saving=experiment.saving,
            together=experiment.together,
            experiment=experiment.name,
            scores=scores,
        )
        return score_models(scoring, models, again)

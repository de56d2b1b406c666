"""An experiment: models by name, what they are made from, and the attacks on them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import jax
from etils import epath

from undo_jax.attack import Attack
from undo_jax.evals.scoring import Score
from undo_jax.graph.model_graph import ModelNode, ancestry, build_graph
from undo_jax.graph.recipe import Recipe
from undo_jax.graph.recipe_checks import check_recipe
from undo_jax.logs.sink import Sink
from undo_jax.recipes.attacked import attacked
from undo_jax.runner import experiment_checks, teacher_cache
from undo_jax.runner.make import make_models
from undo_jax.runner.run_context import RunContext
from undo_jax.runtime.atomic_files import report_full_disk
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.processes import barrier
from undo_jax.runtime.workdir_lock import lock_workdir
from undo_jax.setting import Setting
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.workdir.manifest import Named, write_manifest
from undo_jax.workdir.provenance import describe_run


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on. Raises ValueError where the parts do not fit."""

    name: str  # of the experiment; names files
    setting: Setting
    models: Mapping[str, Recipe]  # by the names that they have in a report
    attacks: tuple[Attack, ...] = ()
    attacked: tuple[str, ...] | None = None  # names of models; None: all
    oracle: str | None = None  # name of the model that defines 100 % robust
    seeds: tuple[int, ...] = (0,)  # each makes a model of every kind
    together: int = 64  # trials trained at once, at most; fewer if memory is short
    mesh: MeshShape = field(default_factory=MeshShape)
    saving: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    sinks: tuple[Sink, ...] = ()  # of records, besides metrics.jsonl; see undo_jax/sinks
    scores: tuple[Score, ...] = ()  # of finished models, besides the setting's; see undo_jax/scores

    def __post_init__(self):
        experiment_checks.check_experiment(self)

    def experiment(self) -> "Experiment":
        """Returns itself: an experiment can stand where its config is expected."""
        return self

    def recipes(self) -> dict[Named, Recipe]:
        """Every model by (its name, None), and attacked ones by (its name, the attack's name).

        Raises ValueError where an attack adapts a model to what is none.
        """
        checked: set[int] = set()
        named: dict[Named, Recipe] = {(name, None): model for name, model in self.models.items()}
        for name in self.models if self.attacked is None else self.attacked:
            for attack in self.attacks:
                model = self.models[name]
                suffix = model.rng_name.rpartition("/")[2]
                rng_name = f"relearn/{suffix}" if suffix else "relearn"
                named[name, attack.name] = attacked(model, attack, rng_name)
                check_recipe(f"{name} by {attack.name}", named[name, attack.name], checked)
        return named


class PreparedRun(NamedTuple):
    """An experiment that has passed all checks, in a workdir."""

    run: RunContext
    models: Sequence[ModelNode]  # all of it, each once, in topological order
    selected: set[ModelNode]  # those to make
    named: Mapping[Named, Sequence[ModelNode]]  # one per seed


def run(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
    cache_teachers: bool = False,
    command: str = "from Python",
) -> dict[Named, Sequence[ModelNode]]:
    """Makes the models of an experiment. Finished ones are not made again.

    Args:
        experiment: the experiment.
        workdir: the folder of the artifacts.
        kind: makes only the models of this kind, e.g. distill; None: of all kinds.
        name: makes only this model and its ancestors; None: all models.
        cache_teachers: whether a teacher's hidden states are computed once for all its students.
        command: what a report says of how the models were made.

    Returns:
        The models by name, one per seed.

    Raises:
        ValueError: what `prepared` raises.
        FileNotFoundError: if a model is needed that is neither finished nor to be made.
        OSError: if another run has locked the workdir, or its disk is full.
    """
    workdir = epath.Path(workdir)
    with prepared(experiment, workdir, kind, name) as ready, lock_workdir(workdir):
        for model in ready.selected if cache_teachers else ():
            teacher_cache.check_streams(model.recipe, experiment.setting)
        is_new = not all(model.artifact.finished for model in ready.selected)

        @cache  # once, and not before the first training is about to start
        def write_manifest_once() -> None:
            if jax.process_index() == 0:
                write_manifest(experiment, ready.named, workdir, begun=command)

        context = replace(ready.run, cache_teachers=cache_teachers)
        make_models(context, ready.models, ready.selected, write_manifest_once)
        if jax.process_index() == 0:
            write_manifest(experiment, ready.named, workdir, describe_run(command), is_new)
        barrier("the manifest")
    return dict(ready.named)


@contextmanager
def prepared(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
) -> Iterator[PreparedRun]:
    """Checks all that can be checked before anything trains. Inside the block the mesh is set.

    The arguments are those of `run`.

    Raises:
        ValueError: for an unknown kind or name, or parts that do not fit, and what the setting and
            imports raise for missing data.
    """
    named, workdir = experiment.recipes(), epath.Path(workdir)
    recipes = list(ancestry(named.values()))
    experiment_checks.check_selection(experiment.models, recipes, kind, name)
    mesh, setting = make_mesh(experiment.mesh), experiment.setting
    experiment_checks.check_batches(recipes, setting, mesh)
    with jax.set_mesh(mesh), report_full_disk(workdir):
        experiment_checks.check_losses(recipes, setting, mesh)
        context = RunContext(
            setting=setting,
            mesh=mesh,
            saving=experiment.saving,
            together=experiment.together,
            experiment=experiment.name,
            sinks=experiment.sinks,
            scores=experiment.scores,
        )
        graph = build_graph(named.values(), experiment.seeds, setting, workdir)
        selected = {
            ancestor
            for (model_name, _), recipe in named.items()
            if name in (None, model_name)
            for model in graph.models_of(recipe)
            for ancestor in model.lineage
            if kind in (None, ancestor.recipe.kind)
        }
        experiment_checks.check_data(context, selected)
        models = {name: graph.models_of(recipe) for name, recipe in named.items()}
        yield PreparedRun(context, graph.models, selected, models)

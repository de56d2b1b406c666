"""What a run would make, and what it would cost: nothing trains, nothing is written."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from etils import epath

from undo_jax.fit.bench import flops
from undo_jax.graph.model_graph import ModelNode, group_key, train_spec
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.runner.experiment import Experiment, prepared
from undo_jax.runner.make import order_groups
from undo_jax.runner.run_context import RunContext, trained_recipe
from undo_jax.runner.split_group import least_bytes
from undo_jax.runner.teacher_cache import CacheSavings, estimate_savings
from undo_jax.runner.time_estimate import Pace, estimate_paces, read_records
from undo_jax.runner.unfinished import find_work
from undo_jax.runtime import device_memory
from undo_jax.setting import Setting
from undo_jax.workdir.manifest import Named


@dataclass(frozen=True)
class PlannedGroup:
    """Models that train together as one program, or those of a kind that are not trained."""

    key: str  # equal for models that can train together
    trained: tuple[ModelNode, ...]  # models that train together; empty if all are finished
    new: tuple[ModelNode, ...]  # those of them that are not finished
    reused: tuple[ModelNode, ...]  # finished ones that could have trained with them

    @property
    def kind(self) -> str:
        return (*self.trained, *self.reused)[0].recipe.kind

    @property
    def is_training(self) -> bool:
        return bool(self.trained) and isinstance(self.trained[0].recipe, TrainedRecipe)


@dataclass(frozen=True)
class PlanRow:
    """The numbers of a group. Costs are 0 where nothing trains."""

    kind: str
    names: tuple[str, ...]  # of models as the report calls them, for all their seeds
    new: int  # number of models to make
    reused: int  # number of finished models
    trials: int = 0  # models to train times their learning rates
    steps: int = 0  # at most, if a stop rule may end a training earlier
    stops: bool = False  # whether there is such a rule
    flops: float = 0.0
    seconds: float | None = 0.0  # None if no finished training is alike
    bytes: float = 0.0  # of each device, at the least
    cached: CacheSavings | None = None  # with --cache-teachers, if that saves something


@dataclass(frozen=True)
class RunPlan:
    """A run's rows, in the order in which it makes them; what is reused whole comes first."""

    rows: tuple[PlanRow, ...]
    device: str
    devices: int
    bytes: float  # that each device has

    @property
    def seconds(self) -> float:
        """The sum of the times that are known."""
        return sum(row.seconds or 0.0 for row in self.rows)

    @property
    def is_timed(self) -> bool:
        """Whether the times of all trainings are known."""
        return all(row.seconds is not None for row in self.rows)


def plan_run(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
) -> RunPlan:
    """Plans what `experiment.run` would do with these arguments.

    Times are estimated from finished trainings in the workdir that are alike. Raises what
    `experiment.run` raises before it trains.
    """
    with prepared(experiment, workdir, kind, name) as ready:
        run = ready.run
        groups = plan_groups(run, ready.models, ready.selected)
        models = {group.key: group.trained[0] for group in groups if group.is_training}
        paces = estimate_paces(run, models, read_records(epath.Path(workdir)))
        rows = tuple(make_row(group, run, paces.get(group.key), ready.named) for group in groups)
        available = device_memory.device_bytes(run.mesh)
    return RunPlan(rows, run.mesh.devices.flat[0].device_kind, run.mesh.size, available)


def plan_groups(
    run: RunContext, models: Sequence[ModelNode], selected: Collection[ModelNode]
) -> list[PlannedGroup]:
    """Returns the groups of a run, in order. Raises what `order_groups` raises."""
    left, finished = find_work(models, selected)
    reused: dict[str, list[ModelNode]] = {}
    for model in finished:
        if model not in left:
            reused.setdefault(_key(model, run.setting), []).append(model)
    ordered = [(_key(group[0], run.setting), group) for group in order_groups(run, models, left)]
    untrained: dict[str, list[ModelNode]] = {}  # models of a kind, as one group
    for key, group in ordered:
        if not isinstance(group[0].recipe, TrainedRecipe):
            untrained.setdefault(key, []).extend(group)
    planned = []
    for key, group in ordered:
        if not isinstance(group[0].recipe, TrainedRecipe):
            if key not in untrained:  # it is in the group of an earlier model
                continue
            group = untrained.pop(key)
        new = tuple(model for model in group if model in left)
        planned.append(PlannedGroup(key, tuple(group), new, tuple(reused.pop(key, ()))))
    finished_groups = [PlannedGroup(key, (), (), tuple(group)) for key, group in reused.items()]
    return [*finished_groups, *planned]


def make_row(
    group: PlannedGroup,
    run: RunContext,
    pace: Pace | None,
    named: Mapping[Named, Sequence[ModelNode]],
) -> PlanRow:
    """Returns the numbers of a group; without a `pace` its seconds are unknown."""
    names = tuple(dict.fromkeys(_name(m, named) for m in (*group.new, *group.reused)))
    new, reused = len(group.new), len(group.reused)
    if not group.is_training:
        return PlanRow(group.kind, names, new, reused)
    recipes = [trained_recipe(model) for model in group.trained]
    recipe = recipes[0]
    spec, trials = train_spec(recipe, run.setting), len(group.trained) * len(recipe.learning_rates)
    steps, fraction = recipe.training.steps, pace.fraction if pace else 1.0
    return PlanRow(
        kind=group.kind,
        names=names,
        new=new,
        reused=reused,
        trials=trials,
        steps=steps,
        stops=any(recipe.may_stop_early for recipe in recipes),
        flops=trials * steps * spec.tokens * flops(spec).total,
        seconds=_seconds(pace, run, trials, steps) if pace else None,
        bytes=least_bytes(run, spec, group.trained),
        cached=estimate_savings(run, group.trained, spec, trials * steps * fraction),
    )


def _seconds(pace: Pace, run: RunContext, trials: int, steps: int) -> float:
    """Returns the seconds of trials that train at most `run.together` at once."""
    seconds = 0.0
    for first in range(0, trials, run.together):
        turns = -(-min(run.together, trials - first) // run.mesh.shape["sweep"])
        seconds += pace.start + turns * steps * pace.fraction * pace.step
    return seconds


def _key(model: ModelNode, setting: Setting) -> str:
    recipe = model.recipe
    return group_key(recipe, setting) if isinstance(recipe, TrainedRecipe) else recipe.kind


def _name(model: ModelNode, named: Mapping[Named, Sequence[ModelNode]]) -> str:
    """Returns its name in the report, that of the model attacked, or else its artifact's."""
    names = (name for (name, _), models in named.items() if model in models)
    return next(itertools.chain(names, [model.artifact.model]))

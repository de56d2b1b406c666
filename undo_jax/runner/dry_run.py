"""What a run would make, and what it would cost: nothing trains, nothing is written."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from undo_jax.fit.bench import flops
from undo_jax.graph.nodes import Model, RowForm, group_key, is_trained, work
from undo_jax.graph.recipe import Simple
from undo_jax.runner.experiment import Experiment, prepared
from undo_jax.runner.scheduler import companies_in_order, todo
from undo_jax.runner.teacher_cache import CacheSavings, estimate_savings
from undo_jax.runner.time_estimate import Pace, estimate_paces, read_records
from undo_jax.runner.train_group import Run, least_bytes
from undo_jax.runtime import device_memory
from undo_jax.workdir.manifest import Named


@dataclass(frozen=True)
class PlannedGroup:
    """Models that train together as one program, or those of a kind that are not trained."""

    key: str  # equal for models that can train together
    trained: tuple[Model, ...]  # models that train together; empty if all are finished
    new: tuple[Model, ...]  # those of them that are not finished
    reused: tuple[Model, ...]  # finished ones that could have trained with them

    @property
    def kind(self) -> str:
        return (*self.trained, *self.reused)[0].recipe.kind

    @property
    def is_training(self) -> bool:
        return bool(self.trained) and is_trained(self.trained[0].recipe)


@dataclass(frozen=True)
class PlanRow:
    """The numbers of a group. Costs are 0 where nothing trains."""

    kind: str
    names: tuple[str, ...]  # of models as the report calls them, for all their seeds
    made: int  # number of models
    reused: int  # number of models
    members: int = 0  # models to train times their learning rates
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
        groups = plan_groups(run, ready.models, ready.wanted)
        models = {group.key: group.trained[0] for group in groups if group.is_training}
        paces = estimate_paces(run, models, read_records(epath.Path(workdir)))
        rows = tuple(make_row(group, run, paces.get(group.key), ready.named) for group in groups)
        available = device_memory.device_bytes(run.mesh)
    return RunPlan(rows, run.mesh.devices.flat[0].device_kind, run.mesh.size, available)


def plan_groups(run: Run, models: Sequence[Model], wanted: Collection[Model]) -> list[PlannedGroup]:
    """Returns the groups of a run, in order. Raises what `companies_in_order` raises."""
    left, finished = todo(models, wanted)
    reused: dict[str, list[Model]] = {}
    for model in finished:
        if model not in left:
            reused.setdefault(_key(model, run.setting), []).append(model)
    ordered = [
        (_key(group[0], run.setting), group) for group in companies_in_order(run, models, left)
    ]
    untrained: dict[str, list[Model]] = {}  # models of a kind, as one group
    for key, group in ordered:
        if not is_trained(group[0].recipe):
            untrained.setdefault(key, []).extend(group)
    planned = []
    for key, group in ordered:
        if not is_trained(group[0].recipe):
            if key not in untrained:  # it is in the group of an earlier model
                continue
            group = untrained.pop(key)
        new = tuple(model for model in group if model in left)
        planned.append(PlannedGroup(key, tuple(group), new, tuple(reused.pop(key, ()))))
    return [*(PlannedGroup(key, (), (), tuple(some)) for key, some in reused.items()), *planned]


def make_row(
    group: PlannedGroup, run: Run, pace: Pace | None, named: Mapping[Named, Sequence[Model]]
) -> PlanRow:
    """Returns the numbers of a group; without a `pace` its seconds are unknown."""
    names = tuple(dict.fromkeys(_name(m, named) for m in (*group.new, *group.reused)))
    made, reused = len(group.new), len(group.reused)
    if not group.is_training:
        return PlanRow(group.kind, names, made, reused)
    recipe: Any = group.trained[0].recipe
    spec, members = work(recipe, run.setting), len(group.trained) * len(recipe.rates)
    steps, fraction = recipe.training.steps, pace.fraction if pace else 1.0
    return PlanRow(
        kind=group.kind,
        names=names,
        made=made,
        reused=reused,
        members=members,
        steps=steps,
        stops=any(_may_stop(model.recipe) for model in group.trained),
        flops=members * steps * spec.tokens * flops(spec).total,
        seconds=_seconds(pace, run, members, steps) if pace else None,
        bytes=least_bytes(run, spec, group.trained),
        cached=estimate_savings(run, group.trained, spec, members * steps * fraction),
    )


def _seconds(pace: Pace, run: Run, members: int, steps: int) -> float:
    """Returns the seconds of trials that train at most `run.together` at once."""
    seconds = 0.0
    for first in range(0, members, run.together):
        turns = -(-min(run.together, members - first) // run.mesh.shape["sweep"])
        seconds += pace.start + turns * steps * pace.fraction * pace.step
    return seconds


def _may_stop(recipe: Any) -> bool:
    """Returns whether a training may end before its last step."""
    return type(recipe).ends is not Simple.ends and getattr(recipe, "stop_early", True)


def _key(model: Model, form: RowForm) -> str:
    recipe: Any = model.recipe
    return group_key(recipe, form) if is_trained(recipe) else recipe.kind


def _name(model: Model, named: Mapping[Named, Sequence[Model]]) -> str:
    """Returns its name in the report, that of the model attacked, or else its artifact's."""
    names = (name for (name, _), models in named.items() if model in models)
    return next(itertools.chain(names, [model.artifact.model]))

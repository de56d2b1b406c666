"""What a run would make, and about how long it would take: nothing trains, nothing is written."""

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
from undo_jax.runner.time_estimate import Pace, paces, read_records
from undo_jax.runner.train_group import Run, least_bytes
from undo_jax.runtime import device_memory
from undo_jax.workdir.manifest import Named

SAVING = 0.3  # seconds to write a model, or to make one without training: small ones on a CPU


@dataclass(frozen=True)
class PlannedGroup:
    """Models that train together as one program, or those of a kind that are not trained."""

    key: str  # equal for models that can train together
    company: tuple[Model, ...]  # that train; none where all are finished
    made: tuple[Model, ...]  # of these, those that are not finished
    reused: tuple[Model, ...]  # finished ones that could have trained with them

    @property
    def kind(self) -> str:
        return (*self.company, *self.reused)[0].recipe.kind

    @property
    def trained(self) -> bool:
        return bool(self.company) and is_trained(self.company[0].recipe)


@dataclass(frozen=True)
class PlanRow:
    """A program's numbers. Costs are 0 where nothing trains."""

    kind: str
    names: tuple[str, ...]  # of models as the report calls them, for all their seeds
    made: int
    reused: int
    members: int  # models to train times their learning rates
    steps: int  # at most, where a stop rule may end them earlier
    stops: bool  # whether there is such a rule
    flops: float
    seconds: float
    bytes: float  # of each device, at the least
    basis: str  # of `seconds`, see `Pace`; empty where nothing trains
    cached: CacheSavings | None = None  # with --cache-teachers, where that saves something


@dataclass(frozen=True)
class RunPlan:
    """A run's rows, in the order in which it makes them; what is reused whole comes first."""

    rows: tuple[PlanRow, ...]
    device: str
    devices: int
    bytes: float  # that each device has

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)


def plan_run(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
) -> RunPlan:
    """What `experiment.run` would do with these arguments. Raises what that raises before training.

    Seconds per FLOP are those of finished trainings in the workdir that are alike; else a few steps
    and an evaluation are measured here, unless that would take long.
    """
    with prepared(experiment, workdir, kind, name) as found:
        run = found.run
        some = plan_groups(run, found.models, found.wanted)
        each = {one.key: one.company[0] for one in some if one.trained}
        known = paces(run, each, read_records(epath.Path(workdir)))
        rows = tuple(
            make_row(one, run, known[one.key] if one.trained else None, found.named) for one in some
        )
        there = device_memory.device_bytes(run.mesh)
    return RunPlan(rows, run.mesh.devices.flat[0].device_kind, run.mesh.size, there)


def plan_groups(run: Run, models: Sequence[Model], wanted: Collection[Model]) -> list[PlannedGroup]:
    """The programs of a run. Raises what `companies_in_order` does."""
    left, finished = todo(models, wanted)
    reused: dict[str, list[Model]] = {}
    for model in finished:
        if model not in left:
            reused.setdefault(_key(model, run.setting), []).append(model)
    companies = [(_key(one[0], run.setting), one) for one in companies_in_order(run, models, left)]
    untrained: dict[str, list[Model]] = {}  # models of a kind, as one program
    for key, company in companies:
        if not is_trained(company[0].recipe):
            untrained.setdefault(key, []).extend(company)
    found = []
    for key, company in companies:
        together = untrained.pop(key, []) if key in untrained else company
        if is_trained(company[0].recipe) or together is not company:
            made = tuple(model for model in together if model in left)
            found.append(PlannedGroup(key, tuple(together), made, tuple(reused.pop(key, ()))))
    return [*(PlannedGroup(key, (), (), tuple(some)) for key, some in reused.items()), *found]


def make_row(
    program: PlannedGroup, run: Run, pace: Pace | None, named: Mapping[Named, Sequence[Model]]
) -> PlanRow:
    """A program's numbers; `pace` is None where nothing trains."""
    names = tuple(dict.fromkeys(_name(m, named) for m in (*program.made, *program.reused)))
    about = program.kind, names, len(program.made), len(program.reused)
    if pace is None:
        return PlanRow(*about, 0, 0, False, 0.0, SAVING * len(program.made), 0.0, "")
    recipe: Any = program.company[0].recipe
    doing, members = work(recipe, run.setting), len(program.company) * len(recipe.rates)
    steps, sweep = recipe.training.steps, run.mesh.shape["sweep"]
    cost = members * steps * doing.tokens * flops(doing).total
    seconds = SAVING * len(program.made)
    for size in _sizes(members, run.together):
        turns = -(-size // sweep)
        evaluated = evaluations(steps, recipe.training.eval_every) * pace.evaluation
        seconds += pace.start + turns * (steps * pace.share * pace.step + evaluated)
    stops = any(_stops(model.recipe) for model in program.company)
    needed = least_bytes(run, doing, program.company)
    cached = estimate_savings(run, program.company, doing, members * steps * pace.share)
    return PlanRow(*about, members, steps, stops, cost, seconds, needed, pace.basis, cached)


def evaluations(steps: int, every: int) -> int:
    """How often a training is evaluated: at step 0, every few steps, and at the last one."""
    return 1 + -(-steps // every)


def _sizes(members: int, together: int) -> list[int]:
    """Members that train side by side, one group after another."""
    return [min(together, members - first) for first in range(0, members, together)]


def _stops(recipe: Any) -> bool:
    """Whether a training may end before its last step."""
    return type(recipe).ends is not Simple.ends and getattr(recipe, "stop_early", True)


def _key(model: Model, form: RowForm) -> str:
    recipe: Any = model.recipe
    return group_key(recipe, form) if is_trained(recipe) else recipe.kind


def _name(model: Model, named: Mapping[Named, Sequence[Model]]) -> str:
    """Its name in the report, that of the model attacked, or else its artifact's."""
    found = (name for (name, _), some in named.items() if model in some)
    return next(itertools.chain(found, [model.artifact.model]))

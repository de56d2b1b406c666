"""What a run would make, and about how long it would take: nothing trains, nothing is written."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from undo_jax.fit.bench import flops
from undo_jax.graph.model_graph import ModelNode
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.graph.train_specs import RowFormat, group_key, train_spec
from undo_jax.runner.experiment import Experiment, prepared
from undo_jax.runner.scheduler import find_work, order_groups
from undo_jax.runner.split_group import least_bytes
from undo_jax.runner.teacher_cache import Saving, saving
from undo_jax.runner.time_estimate import Pace, paces, read_records
from undo_jax.runner.trials import RunContext
from undo_jax.runtime import device_memory
from undo_jax.workdir.manifest import Named

SAVING = 0.3  # seconds to write a model, or to make one without training: small ones on a CPU


@dataclass(frozen=True)
class Program:
    """Models that train together as one program, or those of a kind that are not trained."""

    key: str  # equal for models that can train together
    company: tuple[ModelNode, ...]  # that train; none where all are finished
    made: tuple[ModelNode, ...]  # of these, those that are not finished
    reused: tuple[ModelNode, ...]  # finished ones that could have trained with them

    @property
    def kind(self) -> str:
        return (*self.company, *self.reused)[0].recipe.kind

    @property
    def trained(self) -> bool:
        return bool(self.company) and isinstance(self.company[0].recipe, TrainedRecipe)


@dataclass(frozen=True)
class Row:
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
    cached: Saving | None = None  # with --cache-teachers, where that saves something


@dataclass(frozen=True)
class Planned:
    """A run's rows, in the order in which it makes them; what is reused whole comes first."""

    rows: tuple[Row, ...]
    device: str
    devices: int
    bytes: float  # that each device has

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)


def plan(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
) -> Planned:
    """What `experiment.run` would do with these arguments. Raises what that raises before training.

    Seconds per FLOP are those of finished trainings in the workdir that are alike; else a few steps
    and an evaluation are measured here, unless that would take long.
    """
    with prepared(experiment, workdir, kind, name) as found:
        run = found.run
        some = programs(run, found.models, found.selected)
        each = {one.key: one.company[0] for one in some if one.trained}
        known = paces(run, each, read_records(epath.Path(workdir)))
        rows = tuple(
            row(one, run, known[one.key] if one.trained else None, found.named) for one in some
        )
        there = device_memory.of_device(run.mesh)
    return Planned(rows, run.mesh.devices.flat[0].device_kind, run.mesh.size, there)


def programs(
    run: RunContext, models: Sequence[ModelNode], wanted: Collection[ModelNode]
) -> list[Program]:
    """The programs of a run. Raises what `companies_in_order` does."""
    left, finished = find_work(models, wanted)
    reused: dict[str, list[ModelNode]] = {}
    for model in finished:
        if model not in left:
            reused.setdefault(_key(model, run.setting), []).append(model)
    companies = [(_key(one[0], run.setting), one) for one in order_groups(run, models, left)]
    untrained: dict[str, list[ModelNode]] = {}  # models of a kind, as one program
    for key, company in companies:
        if not isinstance(company[0].recipe, TrainedRecipe):
            untrained.setdefault(key, []).extend(company)
    found = []
    for key, company in companies:
        together = untrained.pop(key, []) if key in untrained else company
        if isinstance(company[0].recipe, TrainedRecipe) or together is not company:
            made = tuple(model for model in together if model in left)
            found.append(Program(key, tuple(together), made, tuple(reused.pop(key, ()))))
    return [*(Program(key, (), (), tuple(some)) for key, some in reused.items()), *found]


def row(
    program: Program, run: RunContext, pace: Pace | None, named: Mapping[Named, Sequence[ModelNode]]
) -> Row:
    """A program's numbers; `pace` is None where nothing trains."""
    names = tuple(dict.fromkeys(_name(m, named) for m in (*program.made, *program.reused)))
    about = program.kind, names, len(program.made), len(program.reused)
    if pace is None:
        return Row(*about, 0, 0, False, 0.0, SAVING * len(program.made), 0.0, "")
    recipe: Any = program.company[0].recipe
    doing, members = (
        train_spec(recipe, run.setting),
        len(program.company) * len(recipe.learning_rates),
    )
    steps, sweep = recipe.training.steps, run.mesh.shape["sweep"]
    cost = members * steps * doing.tokens * flops(doing).total
    seconds = SAVING * len(program.made)
    for size in _sizes(members, run.together):
        turns = -(-size // sweep)
        evaluated = evaluations(steps, recipe.training.eval_every) * pace.evaluation
        seconds += pace.start + turns * (steps * pace.share * pace.step + evaluated)
    stops = any(_stops(model.recipe) for model in program.company)
    needed = least_bytes(run, doing, program.company)
    cached = saving(run, program.company, doing, members * steps * pace.share)
    return Row(*about, members, steps, stops, cost, seconds, needed, pace.basis, cached)


def evaluations(steps: int, every: int) -> int:
    """How often a training is evaluated: at step 0, every few steps, and at the last one."""
    return 1 + -(-steps // every)


def _sizes(members: int, together: int) -> list[int]:
    """Members that train side by side, one group after another."""
    return [min(together, members - first) for first in range(0, members, together)]


def _stops(recipe: Any) -> bool:
    """Whether a training may end before its last step."""
    return recipe.may_stop_early


def _key(model: ModelNode, form: RowFormat) -> str:
    recipe: Any = model.recipe
    return group_key(recipe, form) if isinstance(recipe, TrainedRecipe) else recipe.kind


def _name(model: ModelNode, named: Mapping[Named, Sequence[ModelNode]]) -> str:
    """Its name in the report, that of the model attacked, or else its artifact's."""
    found = (name for (name, _), some in named.items() if model in some)
    return next(itertools.chain(found, [model.artifact.model]))

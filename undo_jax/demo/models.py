"""The models of a run as columns of the demo, and their parameters at steps of the attack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from undo_jax.api import Model, Run
from undo_jax.checks import listed
from undo_jax.report.cases import Case, cases_of
from undo_jax.report.records import ROLES, Evaluation, Logs
from undo_jax.report.worst_case import by_step
from undo_jax.types import parameters

BYTES = 4  # of a parameter on disk
UNATTACKED = "no attack"


@dataclass(frozen=True, eq=False)
class ModelColumn:
    """A model with one seed: its strongest attack at each step, and what can be shown of it."""

    name: str
    role: str
    alpha: float | None
    unlearned: str | None  # the folder of its unlearned ancestor; an unlearned model's own
    scores: tuple[float, float]  # before attacks: retain, forget
    strongest: Mapping[int, Evaluation]  # by step; at 0 no attack; empty if it is not attacked
    model: Model = field(repr=False)  # before attacks
    openers: Mapping[int, Callable[[], Model]] = field(repr=False)  # of attacked models, by step

    def at(self, step: int) -> Callable[[], Model] | None:
        """Returns what opens the model at a step of the attack; None if it is not on disk."""
        return self.openers.get(step) if self.strongest else lambda: self.model


def seed_of(run: Run, seed: int | None) -> int | None:
    """Returns the seed that is shown: `seed`, or the run's first; None if models have none.

    Raises ValueError for a seed that the run does not have.
    """
    seeds = list(dict.fromkeys(e.seed for e in run.logs.entries if e.seed is not None))
    if seed is None:
        return seeds[0] if seeds else None
    if seed not in seeds:
        raise ValueError(f"there is no seed {seed} of {run.logs.name}: choose from {listed(seeds)}")
    return seed


def columns(run: Run, seed: int | None) -> list[ModelColumn]:
    """Returns the finished models of a run with one seed, in the report's order.

    Raises ValueError if no attack on them has finished.
    """
    cases = [
        case
        for case in cases_of(run.logs)
        if case.entry.seed in (seed, None) and case.artifact and case.entry.role != "student"
    ]
    if not any(case.strongest for case in cases):
        raise ValueError(
            f"{run.logs.name} has no finished attack with seed {seed}: run the experiment again"
        )
    cases.sort(key=lambda case: ROLES.index(case.entry.role))  # stable
    return [_column(run, case) for case in cases]


def steps(shown: list[ModelColumn]) -> tuple[int, ...]:
    """Returns the steps whose parameters are on disk for every attacked model.

    Raises ValueError if there is none.
    """
    common = set.intersection(*(set(column.openers) for column in shown if column.strongest))
    if not common:
        raise ValueError(
            "there is no step of the attack at which all models are on disk: give the attack "
            "keep_at=(...), and run the experiment again"
        )
    return tuple(sorted(common))


def missing(shown: list[ModelColumn]) -> tuple[tuple[int, ...], int]:
    """Returns the evaluated steps that are not on disk, and the bytes that they would take."""
    attacked = [column for column in shown if column.strongest]
    absent = {step for column in attacked for step in column.strongest} - set(steps(shown))
    bytes_per_step = sum(parameters(column.model.lm) * BYTES for column in attacked)
    return tuple(sorted(absent)), len(absent) * bytes_per_step


def _column(run: Run, case: Case) -> ModelColumn:
    entry = case.entry
    assert case.artifact is not None
    model = run[entry.model, entry.seed] if entry.seed is not None else run[entry.model]
    scores = case.artifact.summary["eval"]
    retain, forget = scores[run.logs.retain.name], scores[run.logs.forget.name]
    strongest = dict(case.strongest)
    by_step_openers = {
        step: _opener(run.logs, model, case, step, e) for step, e in strongest.items()
    }
    openers = {step: opener for step, opener in by_step_openers.items() if opener is not None}
    if strongest:  # some attacks damage a model before their first step, or need none
        strongest[0] = Evaluation(UNATTACKED, None, 0, forget=forget, retain=retain)
        openers[0] = lambda: model
    return ModelColumn(
        entry.model,
        entry.role,
        entry.alpha,
        entry.unlearned,
        (retain, forget),
        strongest,
        model,
        openers,
    )


def _opener(
    logs: Logs, model: Model, case: Case, step: int, evaluation: Evaluation
) -> Callable[[], Model] | None:
    """Returns what opens the evaluated parameters; None if they are not on disk."""
    name = evaluation.data
    folder = model.attacks.get(name)
    if folder is None:
        return None
    if (folder / "steps" / str(step) / "summary.json").exists():
        return lambda: model.attack(name).at(step)
    # The attack's own parameters are those of its best learning rate at its last step.
    of_attack = [attack for attack in case.attacks if attack.data == name]
    last = max(attack.step for attack in of_attack)
    ends = [attack for attack in of_attack if attack.step == last]
    best = by_step(ends, logs.forget, logs.retain).get(last)
    if step == last and best is not None and best.learning_rate == evaluation.learning_rate:
        return partial(model.attack, name)
    return None

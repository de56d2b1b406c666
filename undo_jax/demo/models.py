"""The models of a run as columns of the demo, and their parameters at steps of the attack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from undo_jax.api import Model, Run
from undo_jax.checks import listed
from undo_jax.report.cases import Case, cases_of
from undo_jax.report.numbers import by_step
from undo_jax.report.records import ROLES, Evaluation, Logs
from undo_jax.types import parameters

BYTES = 4  # of a parameter on disk
UNATTACKED = "no attack"


@dataclass(frozen=True, eq=False)
class Column:
    """A model with one seed: its strongest attack at each step, and what can be shown of it."""

    name: str
    role: str
    alpha: float | None
    unlearned: str | None  # the folder of its unlearned ancestor; an unlearned model's own
    scores: tuple[float, float]  # before attacks, of what is retained and of what is forgotten
    strongest: Mapping[int, Evaluation]  # by step; at 0 no attack; empty if it is not attacked
    model: Model = field(repr=False)  # before attacks
    opens: Mapping[int, Callable[[], Model]] = field(repr=False)  # it under attack, by step

    def at(self, step: int) -> Callable[[], Model] | None:
        """What opens its model at a step of the attack; None where that is not on disk."""
        return self.opens.get(step) if self.strongest else lambda: self.model


def seed_of(run: Run, seed: int | None) -> int | None:
    """The seed that is shown: this one, or the run's first. ValueError for one it does not have."""
    seeds = list(dict.fromkeys(e.seed for e in run.logs.entries if e.seed is not None))
    if seed is None:
        return seeds[0] if seeds else None
    if seed not in seeds:
        raise ValueError(f"there is no seed {seed} of {run.logs.name}: choose from {listed(seeds)}")
    return seed


def columns(run: Run, seed: int | None) -> list[Column]:
    """The finished models of a run with one seed, in the report's order.

    Raises ValueError where no attack on them has finished.
    """
    shown = [
        c
        for c in cases_of(run.logs)
        if c.entry.seed in (seed, None) and c.artifact is not None and c.entry.role != "student"
    ]
    if not any(case.strongest for case in shown):
        raise ValueError(
            f"{run.logs.name} has no finished attack with seed {seed}: run the experiment again"
        )
    shown.sort(key=lambda case: ROLES.index(case.entry.role))  # stable
    return [_column(run, case) for case in shown]


def steps(shown: list[Column]) -> tuple[int, ...]:
    """The steps at which every attacked model can be shown. Raises ValueError if there is none."""
    attacked = [set(column.opens) for column in shown if column.strongest]
    if not (found := set.intersection(*attacked)):
        raise ValueError(
            "there is no step of the attack at which all models are on disk: give the attack "
            "keep_at=(...), and run the experiment again"
        )
    return tuple(sorted(found))


def missing(shown: list[Column]) -> tuple[tuple[int, ...], int]:
    """The evaluated steps that are not on disk, and the bytes that these models take there."""
    known = steps(shown)
    attacked = [column for column in shown if column.strongest]
    lost = {step for one in attacked for step in one.strongest} - set(known)
    each = [parameters(column.model.lm) * BYTES for column in attacked]
    return tuple(sorted(lost)), len(lost) * sum(each)


def _column(run: Run, case: Case) -> Column:
    entry, own = case.entry, case.artifact
    assert own is not None
    model = run[entry.model, entry.seed] if entry.seed is not None else run[entry.model]
    scores = own.summary["eval"]
    before = scores[run.logs.retain.name], scores[run.logs.forget.name]
    opens: dict[int, Callable[[], Model]] = {}
    strongest = dict(case.strongest)
    for step, evaluation in case.strongest.items():
        if found := _opener(run.logs, model, case, step, evaluation):
            opens[step] = found
    if strongest:  # some attacks damage a model before their first step, or need none
        strongest[0] = Evaluation(UNATTACKED, None, 0, forget=before[1], retain=before[0])
        opens[0] = lambda: model
    made = entry.role, entry.alpha, entry.unlearned
    return Column(entry.model, *made, before, strongest, model, opens)


def _opener(
    logs: Logs,
    model: Model,
    case: Case,
    step: int,
    evaluation: Evaluation,
) -> Callable[[], Model] | None:
    """What opens the parameters that an evaluation is of; None where they are not on disk."""
    name = evaluation.data
    folder = model.attacks.get(name)
    if folder is None:
        return None
    if (folder / "steps" / str(step) / "summary.json").exists():
        return lambda: model.attack(name).at(step)
    own = [one for one in case.attacks if one.data == name]
    last = max(one.step for one in own)
    ends = [one for one in own if one.step == last]  # of all learning rates
    best = by_step(ends, logs.forget, logs.retain).get(last)
    if step == last and best is not None and best.learning_rate == evaluation.learning_rate:
        return partial(model.attack, name)
    return None

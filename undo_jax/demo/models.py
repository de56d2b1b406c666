"""The models of a run as columns of the demo, and their parameters at steps of the attack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from undo_jax.api import Model, Run
from undo_jax.checks import listed
from undo_jax.report.cases import Case, cases_of
from undo_jax.report.records import ROLES, UNATTACKED, Evaluation
from undo_jax.runtime.atomic_files import read_json
from undo_jax.store.artifacts import STEPS
from undo_jax.types import parameters

BYTES = 4  # of a parameter on disk


@dataclass(frozen=True, eq=False)
class ModelColumn:
    """A model with one seed: its worst case at each step, and what can be shown of it.

    Where parameters are on disk, the worst case is of those on disk, which answer.
    """

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
    saved = _saved(model, case)
    on_disk = case.worst_by_step(list(saved), run.logs.forget)
    strongest = dict(case.strongest) | on_disk
    openers = {step: saved.get(e, lambda: model) for step, e in on_disk.items()}
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


def _saved(model: Model, case: Case) -> dict[Evaluation, Callable[[], Model]]:
    """Returns the evaluations whose parameters are on disk, and what opens these."""
    evaluations = {(a.data, a.learning_rate, a.step): a for a in case.attacks}
    saved: dict[Evaluation, Callable[[], Model]] = {}
    for name, folder in model.attacks.items():
        for path in (folder, *(folder / STEPS).glob("*")):
            if not (path / "summary.json").exists():
                continue
            summary = read_json(path / "summary.json")
            step = summary["steps"]
            evaluation = evaluations.get((name, summary.get("learning_rate"), step))
            if evaluation is not None:
                saved[evaluation] = (
                    partial(model.attack, name) if path == folder else _at(model, name, step)
                )
    return saved


def _at(model: Model, attack: str, step: int) -> Callable[[], Model]:
    return lambda: model.attack(attack).at(step)

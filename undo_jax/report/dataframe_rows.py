"""The numbers as rows, one for each model and seed, which pandas.DataFrame takes as they are."""

from typing import NamedTuple

from undo_jax.report.cases import cases_of, score_of
from undo_jax.report.records import Logs
from undo_jax.report.worst_case import strongest


class Result(NamedTuple):
    """A model with one seed; nan where it is not finished, not attacked or undefined."""

    model: str
    seed: int | None
    role: str
    alpha: float | None  # of the noise that its student began with
    retain: float  # before attacks, as `worst` in the unit of its metric
    forget: float
    worst: float  # forget score of the strongest attack at any step
    robustness: float  # in %: 0 is the unlearned model, 100 the oracle


class Point(NamedTuple):
    """A model with one seed after `step` steps of relearning."""

    model: str
    seed: int | None
    step: int
    forget: float  # of the strongest attack at this step
    retain: float  # under that attack


def results(logs: Logs) -> list[Result]:
    """Returns scores and robustness of every model and seed, in the order of the experiment."""
    return [
        Result(
            model=case.entry.model,
            seed=case.entry.seed,
            role=case.entry.role,
            alpha=case.entry.alpha,
            retain=score_of(case.artifact, logs.retain),
            forget=score_of(case.artifact, logs.forget),
            worst=strongest(case.attacks, logs.forget),
            robustness=case.robustness + 0.0,  # no minus before a zero
        )
        for case in cases_of(logs)
    ]


def curves(logs: Logs) -> list[Point]:
    """Returns the relearning curve of every attacked model and seed, one after the other."""
    return [
        Point(case.entry.model, case.entry.seed, step, attack.forget, attack.retain)
        for case in cases_of(logs)
        for step, attack in case.strongest.items()
    ]

"""One plain JSON-able description of a demo: all that its page shows."""

import datetime
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from undo_jax.api import Run
from undo_jax.demo.ask import Question, Reply
from undo_jax.demo.models import Column
from undo_jax.report.records import Measure
from undo_jax.setting import Example

View = Literal["all", "official"]
OFFICIAL_STEP = 50  # of the attack, in the article's demo


def describe(
    run: Run,
    columns: Sequence[Column],
    steps: Sequence[int],
    examples: Sequence[Example],
    replies: Sequence[Sequence[Sequence[Reply | None]]],
    seed: int | None,
    **more: Any,
) -> dict[str, Any]:
    """The models, steps, examples and curves; `replies` by example, step and model.

    `more` are further fields of the page.
    """
    logs = run.logs
    return {
        "name": logs.name,
        "seed": seed,
        "retain": _measure(logs.retain),
        "forget": _measure(logs.forget),
        "steps": list(steps),
        "models": [_model(column) for column in columns],
        "pair": pair(columns),
        "examples": [example._asdict() for example in examples],
        "replies": [[[told(r) for r in at] for at in of] for of in replies],
        "version": version("undo-jax"),
        "date": datetime.date.today().isoformat(),
        **more,
    }


def told(reply: Reply | None) -> dict[str, Any] | None:
    """A reply as JSON."""
    return None if reply is None else reply._asdict()


def question(example: Example) -> Question:
    """What is asked in an example."""
    return Question(example.prompt, example.answer, example.ends)


def pair(columns: Sequence[Column]) -> list[int]:
    """The official demo's two models: an unlearned one, and its fresh (or noisiest) student.

    It is the first unlearned model that has a student; empty where none has.
    """
    distilled = [i for i, one in enumerate(columns) if one.role == "distilled"]
    distilled.sort(key=lambda i: math.inf if columns[i].alpha is None else columns[i].alpha or 0)
    for i, teacher in enumerate(columns):
        students = [j for j in distilled if columns[j].unlearned == teacher.unlearned]
        if teacher.role == "unlearned" and students:
            return [i, students[-1]]
    return []


def official_step(steps: Sequence[int]) -> int:
    """The last step up to the official demo's, or else the first one."""
    return max([step for step in steps if step <= OFFICIAL_STEP], default=steps[0])


def _measure(measure: Measure) -> dict[str, Any]:
    return {"label": measure.axis, "higher": measure.higher_is_better}


def _model(column: Column) -> dict[str, Any]:
    retain, forget = map(_number, column.scores)
    found = sorted(column.strongest.items())
    return {
        "name": column.name,
        "role": column.role,
        "alpha": column.alpha,
        "scores": [retain, forget],
        "curve": [[step, _number(one.retain), _number(one.forget)] for step, one in found],
        "attacks": {step: _attack(one.data, one.learning_rate) for step, one in found},
    }


def _attack(name: str, rate: float | None) -> str:
    return name if rate is None else f"{name}, learning rate {rate:g}"


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def check_view(view: View, columns: Sequence[Column]) -> None:
    """Raises ValueError where the official view has not its two models."""
    if view == "official" and not pair(columns):
        raise ValueError(
            "the official view needs an unlearned model and one distilled from it: leave it out"
        )

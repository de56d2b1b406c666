"""The contents of a demo's page as JSON."""

import datetime
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from undo_jax.api import Run
from undo_jax.demo.ask import Reply
from undo_jax.demo.models import ModelColumn
from undo_jax.setting import Example

View = Literal["all", "official"]
OFFICIAL_STEP = 50  # of the attack, in the article's demo


def describe(
    run: Run,
    columns: Sequence[ModelColumn],
    steps: Sequence[int],
    examples: Sequence[Example],
    replies: Sequence[Sequence[Sequence[Reply | None]]],
    seed: int | None,
    **more: Any,
) -> dict[str, Any]:
    """Returns the contents of a page as JSON: models, steps, examples and curves.

    Args:
        run: the run.
        columns: its models.
        steps: the steps of the attack that are shown.
        examples: the questions.
        replies: to them, by example, step and model.
        seed: of the models.
        more: further fields of the page.
    """
    logs = run.logs
    return {
        "name": logs.name,
        "seed": seed,
        **{
            name: {"label": measure.axis, "higher": measure.higher_is_better}
            for name, measure in (("retain", logs.retain), ("forget", logs.forget))
        },
        "steps": list(steps),
        "models": [_model_json(column) for column in columns],
        "pair": pair(columns),
        "examples": [example._asdict() for example in examples],
        "replies": [
            [[reply_json(reply) for reply in at_step] for at_step in of_example]
            for of_example in replies
        ],
        "version": version("undo-jax"),
        "date": datetime.date.today().isoformat(),
        **more,
    }


def reply_json(reply: Reply | None) -> dict[str, Any] | None:
    """Returns a reply as JSON."""
    return None if reply is None else reply._asdict()


def pair(columns: Sequence[ModelColumn]) -> list[int]:
    """Returns the indices of the official demo's two models; empty without a distilled model.

    They are the first unlearned model that has a student, and its fresh (or noisiest) student.
    """
    distilled = [i for i, column in enumerate(columns) if column.role == "distilled"]
    distilled.sort(key=lambda i: math.inf if columns[i].alpha is None else columns[i].alpha or 0)
    for i, teacher in enumerate(columns):
        students = [j for j in distilled if columns[j].unlearned == teacher.unlearned]
        if teacher.role == "unlearned" and students:
            return [i, students[-1]]
    return []


def official_step(steps: Sequence[int]) -> int:
    """Returns the last step up to the official demo's, or else the first one."""
    return max([step for step in steps if step <= OFFICIAL_STEP], default=steps[0])


def _model_json(column: ModelColumn) -> dict[str, Any]:
    attacks = sorted(column.strongest.items())
    return {
        "name": column.name,
        "role": column.role,
        "alpha": column.alpha,
        "scores": list(map(_number, column.scores)),
        "curve": [[step, _number(a.retain), _number(a.forget)] for step, a in attacks],
    }


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None

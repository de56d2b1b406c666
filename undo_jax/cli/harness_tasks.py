"""Tasks of lm-evaluation-harness, and what a model scores on them; needs the extra `eval`."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate, utils  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

RESAMPLES = 1000  # for the errors of metrics that are no means
PARTS = "results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "config"


def load_tasks(names: Sequence[str], include_path: str | None) -> tuple[Any, list[Any]]:
    """Returns lm-eval's index of tasks, and the tasks of these names, with their data.

    Its own tasks, which take long to list, are read only where the folder lacks one. Raises
    ValueError for an unknown task, and for one that cannot be read.
    """
    try:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if not all(name in manager.all_subtasks or Path(name).is_file() for name in names):
            manager = TaskManager(include_path=include_path)
        matches = [task for name in names for task in _matches(manager, name, include_path)]
        loaded = manager.load(matches)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of YAML, Jinja or datasets: many kinds
        raise ValueError(f"cannot read tasks {', '.join(names)}: {error!r}") from error
    inner = {name for children in loaded["group_map"].values() for name in children}
    outer = {**loaded["groups"], **loaded["tasks"]}
    return manager, [task for name, task in outer.items() if name not in inner]


def score_tasks(
    lm: Any, manager: Any, tasks: list[Any], limit: float | None, num_fewshot: int | None
) -> tuple[str, dict[str, Any]]:
    """Returns the scores as lm-eval's table, and as JSON."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else it forks, which JAX's threads forbid
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    scores = simple_evaluate(
        lm,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=lm.batch_size,
        bootstrap_iters=RESAMPLES,
        log_samples=False,
    )
    table = utils.make_table(scores)
    if scores.get("groups"):
        table += "\n" + utils.make_table(scores, "groups")
    parts = {name: scores[name] for name in PARTS if name in scores}
    return table, json.loads(json.dumps(parts, default=str))


def _matches(manager: Any, name: str, include_path: str | None) -> list[str]:
    """Returns the tasks that a name, a pattern or a file stands for."""
    matches = [name] if Path(name).is_file() else manager.match_tasks([name])
    if not matches:
        available = "no --include-path"
        if include_path:
            folder = TaskManager(include_path=include_path, include_defaults=False)
            available = f"{include_path} has {', '.join(folder.all_tasks)}"
        raise ValueError(
            f"unknown task {name!r}: {available}, and `lm_eval ls tasks` lists lm-eval's"
        )
    return matches

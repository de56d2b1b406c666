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


def find(names: Sequence[str], include_path: str | None) -> tuple[Any, list[Any]]:
    """lm-eval's index of tasks, and those that are wanted, with their data.

    Its own tasks, which take long to list, are read only where the folder lacks one. Raises
    ValueError for an unknown task, and for one that cannot be read.
    """
    try:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if not all(name in manager.all_subtasks or Path(name).is_file() for name in names):
            manager = TaskManager(include_path=include_path)
        wanted = [task for name in names for task in _named(manager, name, include_path)]
        loaded = manager.load(wanted)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of YAML, Jinja or datasets: many kinds
        raise ValueError(f"cannot read tasks {', '.join(names)}: {error!r}") from error
    inner = {name for children in loaded["group_map"].values() for name in children}
    outer = {**loaded["groups"], **loaded["tasks"]}
    return manager, [item for name, item in outer.items() if name not in inner]


def results(
    lm: Any, manager: Any, tasks: list[Any], limit: float | None, num_fewshot: int | None
) -> tuple[str, dict[str, Any]]:
    """The scores as lm-eval's table, and as JSON."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else it forks, which JAX's threads forbid
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    found = simple_evaluate(
        lm,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=lm.batch_size,
        bootstrap_iters=RESAMPLES,
        log_samples=False,
    )
    table = utils.make_table(found)
    if found.get("groups"):
        table += "\n" + utils.make_table(found, "groups")
    parts = {name: found[name] for name in PARTS if name in found}
    return table, json.loads(json.dumps(parts, default=str))


def _named(manager: Any, name: str, include_path: str | None) -> list[str]:
    """What a name, a pattern or a file stands for."""
    found = [name] if Path(name).is_file() else manager.match_tasks([name])
    if not found:
        where = "and `lm_eval ls tasks` lists lm-eval's"
        own = f"{include_path} has {_own(include_path)}" if include_path else "no --include-path"
        raise ValueError(f"unknown task {name!r}: {own}, {where}")
    return found


def _own(include_path: str) -> str:
    """The names of a folder's tasks."""
    return ", ".join(TaskManager(include_path=include_path, include_defaults=False).all_tasks)

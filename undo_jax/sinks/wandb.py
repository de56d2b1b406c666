"""Weights & Biases: a run for each trial, in a group named after the experiment.

W&B's environment variables apply: with WANDB_MODE=offline everything is written to files, which
`wandb sync WORKDIR/*/wandb/*run-*` sends later.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from undo_jax.logs.log import console
from undo_jax.logs.sink import Tags, Target, Write, flatten_numbers, format_tags
from undo_jax.runtime.atomic_files import is_remote
from undo_jax.runtime.install import install_command

try:
    import wandb as client
except ImportError as error:
    raise ImportError(f"sink wandb: {error}: {install_command('wandb')}") from error

PATIENCE = 60  # seconds to send the remaining records when a training ends

_state = "untried"  # then "online", or "offline" if the user asks for it; then perhaps "lost"


@contextmanager
def wandb(
    target: Target, *, project: str | None = None, entity: str | None = None
) -> Iterator[Write]:
    """Logs each trial as a run of a project.

    Training that resumes continues the same run, and only records that W&B does not have are sent.

    Args:
        target: the artifact in training.
        project: the project; by default WANDB_PROJECT or, without it, undo-jax.
        entity: the user or team.

    Raises:
        OSError: if W&B cannot be reached at first; later failures are reported, and training
            continues.
    """
    project = project or os.environ.get("WANDB_PROJECT", "undo-jax")
    with ExitStack() as stack:
        runs = {
            format_tags(tags): stack.enter_context(
                _run(target, tags, project=project, entity=entity)
            )
            for tags in target.members
        }

        def write(tags: Tags, fields: Mapping[str, Any]) -> None:
            runs[format_tags(tags)](fields)

        yield write


@contextmanager
def _run(
    target: Target, tags: Tags, **destination: Any
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that takes the fields of one trial's records."""
    description = json.loads((target.folder / "config.json").read_text())
    run = _open(
        target,
        **destination,
        group=target.experiment,
        job_type=description["stage"],
        name=" ".join(filter(None, (target.folder.name, format_tags(tags)))),
        id=f"{target.training}-{target.members.index(tags)}",
        config={**description, **tags},
        dir=None if is_remote(target.folder) else os.fspath(target.folder),
        reinit="create_new",  # other runs are open in this process
        settings=client.Settings(
            console="off",
            silent=True,
            symlink=False,
            x_disable_stats=True,
            finish_timeout=PATIENCE,
            finish_timeout_raises=True,
        ),
    )
    numbers = itertools.count()

    def write(fields: Mapping[str, Any]) -> None:
        number = next(numbers)  # W&B's step: two records may have the same step of ours
        if run is not None and number >= run.starting_step:  # W&B has the earlier ones
            with _ignore_failure(target):
                run.log({"step": fields["step"], **flatten_numbers(fields)}, step=number)

    status = 1
    try:
        yield write
        status = 0
    finally:
        if run is not None and (run.offline or _state != "lost"):
            with _ignore_failure(target):
                run.finish(exit_code=status)


def _open(target: Target, **options: Any) -> Any:
    """Opens a run, in files alone once W&B is lost; returns None if that fails, too."""
    global _state
    first = _state == "untried"
    if first:
        _state = _log_in()
    if _state != "lost":
        try:
            run = client.init(**options, resume="allow" if _state == "online" else None)
            if first and _state == "online":
                console.print(f"W&B: {run.project_url}/groups/{target.experiment}", soft_wrap=True)
            run.define_metric("*", step_metric="step")
            return run
        except client.Error as error:
            if first:
                raise OSError(f"W&B: {error}: {_remedy('check project and entity')}") from error
            _lose(target, error)
    with _ignore_failure(target):
        run = client.init(**options, mode="offline")
        run.define_metric("*", step_metric="step")
        return run


def _log_in() -> str:
    """Returns online or offline. Raises OSError if W&B should be online and is not."""
    if client.setup().settings.mode not in ("online", "run", "shared"):
        return "offline"
    try:
        is_logged_in = client.login(prompt=False)
    except client.Error as error:
        raise OSError(f"W&B: {error}: {_remedy('check the network')}") from error
    if not is_logged_in:
        raise OSError(f"W&B: not logged in: {_remedy('set WANDB_API_KEY')}")
    return "online"


def _remedy(first: str) -> str:
    return f"{first}, run `wandb login --relogin`, or set WANDB_MODE=offline to log into files"


@contextmanager
def _ignore_failure(target: Target) -> Iterator[None]:
    """Reports errors of W&B in the block once, and ignores them."""
    try:
        yield
    except Exception as error:
        _lose(target, error)


def _lose(target: Target, error: Exception) -> None:
    """Continues without W&B, and reports that once."""
    global _state
    if _state != "lost":
        reason = str(error).split("\n")[0] or type(error).__name__
        console.print(
            f"W&B is lost ({reason}), training goes on: what is in files now, "
            f"`wandb sync {target.folder.parent}/*/wandb/*run-*` sends later",
            soft_wrap=True,
        )
    _state = "lost"

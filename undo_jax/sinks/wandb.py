"""Weights & Biases: a run for each member, in a group of the experiment's name.

What W&B reads from the environment holds: with WANDB_MODE=offline all goes into files, which
`wandb sync WORKDIR/*/wandb/*run-*` sends later.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from undo_jax.logs.log import Tags, Target, Write, console
from undo_jax.runtime.atomic_files import is_remote
from undo_jax.sinks import flatten_numbers, format_tags

try:
    import wandb as client
except ImportError as error:
    raise ImportError(f"sink wandb: {error}: pip install 'undo-jax[wandb]'") from error

PATIENCE = 60  # seconds for what is still to be sent when a training ends

_state = "untried"  # then online, or offline as the user wants it; what was online may be lost


@contextmanager
def wandb(
    target: Target, *, project: str | None = None, entity: str | None = None
) -> Iterator[Write]:
    """Each member is a run of a project: by default WANDB_PROJECT or, without it, undo-jax.

    A training that goes on is the same run, and only what W&B has not got yet is sent. Raises
    OSError where W&B cannot be reached at first; what fails later is told, and ends no training.
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
def _run(target: Target, tags: Tags, **where: Any) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What takes the fields of one member's records."""
    described = json.loads((target.folder / "config.json").read_text())
    run = _open(
        target,
        **where,
        group=target.experiment,
        job_type=described["stage"],
        name=" ".join(filter(None, (target.folder.name, format_tags(tags)))),
        id=f"{target.training}-{target.members.index(tags)}",
        config={**described, **tags},
        dir=None if is_remote(target.folder) else os.fspath(target.folder),
        reinit="create_new",  # others are open in this process
        settings=client.Settings(
            console="off",
            silent=True,
            symlink=False,
            x_disable_stats=True,
            finish_timeout=PATIENCE,
            finish_timeout_raises=True,
        ),
    )
    numbered = itertools.count()

    def write(fields: Mapping[str, Any]) -> None:
        number = next(numbered)  # W&B's step: of one of ours there may be two records
        if run is not None and number >= run.starting_step:  # it has had those before
            with _spared(target):
                run.log({"step": fields["step"], **flatten_numbers(fields)}, step=number)

    status = 1
    try:
        yield write
        status = 0
    finally:
        if run is not None and (run.offline or _state != "lost"):
            with _spared(target):
                run.finish(exit_code=status)


def _open(target: Target, **how: Any) -> Any:
    """A run, into files alone once W&B is lost; None where it has not even these."""
    global _state
    first = _state == "untried"
    if first:
        _state = _reached()
    if _state != "lost":
        try:
            run = client.init(**how, resume="allow" if _state == "online" else None)
            if first and _state == "online":
                console.print(f"W&B: {run.project_url}/groups/{target.experiment}", soft_wrap=True)
            run.define_metric("*", step_metric="step")
            return run
        except client.Error as error:
            if first:
                raise OSError(f"W&B: {error}: {_remedy('check project and entity')}") from error
            _lose(target, error)
    with _spared(target):
        run = client.init(**how, mode="offline")
        run.define_metric("*", step_metric="step")
        return run


def _reached() -> str:
    """Online or offline. Raises OSError where it should be online and is not."""
    if client.setup().settings.mode not in ("online", "run", "shared"):
        return "offline"
    try:
        known = client.login(prompt=False)
    except client.Error as error:
        raise OSError(f"W&B: {error}: {_remedy('check the network')}") from error
    if not known:
        raise OSError(f"W&B: not logged in: {_remedy('set WANDB_API_KEY')}")
    return "online"


def _remedy(first: str) -> str:
    return f"{first}, run `wandb login --relogin`, or set WANDB_MODE=offline to log into files"


@contextmanager
def _spared(target: Target) -> Iterator[None]:
    """What fails in W&B here ends no training."""
    try:
        yield
    except Exception as error:
        _lose(target, error)


def _lose(target: Target, error: Exception) -> None:
    """Go on without W&B, and say so once."""
    global _state
    if _state != "lost":
        said = str(error).split("\n")[0] or type(error).__name__
        console.print(
            f"W&B is lost ({said}), training goes on: what is in files now, "
            f"`wandb sync {target.folder.parent}/*/wandb/*run-*` sends later",
            soft_wrap=True,
        )
    _state = "lost"

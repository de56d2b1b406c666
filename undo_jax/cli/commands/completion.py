"""`undo-jax completion SHELL`."""

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from tyro.conf import Positional, Suppress, arg, subcommand

from undo_jax.cli.discovery import Command, find_commands
from undo_jax.cli.flags import parse

ORDER = 190

Shell = Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="{bash,zsh,fish}")]


def completion(shell: Shell) -> None:
    """Print what makes a shell complete commands and flags: eval "$(undo-jax completion bash)".

    Flags of an experiment are not completed: they depend on its file.

    Args:
        shell: the shell that evaluates it; fish reads it with `| source`.
    """
    with contextlib.suppress(SystemExit):
        parse(_tree(find_commands()), ["--tyro-print-completion", shell], "undo-jax")
    if shell == "bash":  # tyro's script completes no files, e.g. of `run`
        print("complete -o default -F _tyro_undo_jax undo-jax")


def _tree(commands: Mapping[str, Command]) -> Any:
    """Returns the type that the parser makes commands of; in "data pack", data is a group."""
    groups: dict[str, dict[str, Command]] = {}
    for name, command in commands.items():
        first, _, rest = name.partition(" ")
        groups.setdefault(first, {})[rest] = command
    parts = [
        Annotated[Any, subcommand(name, constructor=group[""])]
        if "" in group
        else Annotated[_tree(group), subcommand(name)]
        for name, group in groups.items()
    ]
    return Union[(*parts, Annotated[None, Suppress])]  # noqa: UP007

"""What a shell completes of a program whose commands are functions."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

from tyro.conf import Positional, Suppress, arg, subcommand

Shell = Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="{bash,zsh,fish}")]


def tree(commands: Mapping[str, Callable[..., Any]]) -> Any:
    """The type of which the parser makes commands; of "data pack", data is a group."""
    groups: dict[str, dict[str, Callable[..., Any]]] = {}
    for name, command in commands.items():
        first, _, rest = name.partition(" ")
        groups.setdefault(first, {})[rest] = command
    parts = [
        Annotated[Any, subcommand(name, constructor=of[""])]
        if "" in of
        else Annotated[tree(of), subcommand(name)]
        for name, of in groups.items()
    ]
    return Union[(*parts, Annotated[None, Suppress])]  # noqa: UP007

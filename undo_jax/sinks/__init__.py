"""Where records go: a sink is one file with one function of the file's name::

    @contextmanager
    def NAME(target: Target) -> Iterator[Write]:  # target: one artifact in training
        ...                                       # open
        yield write                               # write(tags, fields) takes one record
        ...                                       # close

`fields` has the `step` and numbers by name, those of an evaluation under `eval`; `tags` says which
of `target.members` they are of. Training that was interrupted and goes on opens the sink again, the
artifact's folder empty, and gives it all records from the first one on.
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from undo_jax.logs.log import Sink, Tags


def find_sink(name: str) -> Sink:
    """The sink in the file of this name. Raises ValueError where there is none."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in names:
        raise ValueError(f"there is no sink {name!r}: choose from {', '.join(names)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def format_tags(tags: Tags) -> str:
    """Tags as a name, also of a folder; of no tags the empty one."""
    return re.sub(r"[^\w.,=+-]+", "-", ",".join(f"{n}={value}" for n, value in tags.items()))


def flatten_numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record but its step; one inside another, as eval/NAME."""
    found: dict[str, float] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": number for inner, number in flatten_numbers(value).items()}
        elif name != "step":
            found[name] = value
    return found

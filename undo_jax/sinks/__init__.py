"""Where records go: a sink is one file with one context manager of the file's name::

    @contextmanager
    def NAME(target: Target) -> Iterator[Write]:  # target: one artifact in training
        ...                                       # open
        yield write                               # write(tags, fields) takes one record
        ...                                       # close

`fields` has the `step` and numbers by name, those of an evaluation under `eval`; `tags` says which
of `target.members` they belong to. Training that was interrupted opens the sink again when it
resumes, with an empty artifact folder, and writes all records from the first one on.
"""

import importlib
import pkgutil

from undo_jax.logs.sink import Sink


def find_sink(name: str) -> Sink:
    """Returns the sink in the file of this name. Raises ValueError if there is none."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in names:
        raise ValueError(f"there is no sink {name!r}: choose from {', '.join(names)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)

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

import sys

from undo_jax.logs.sink import Sink
from undo_jax.runtime.plugins import find_plugin


def find_sink(name: str) -> Sink:
    """Returns the sink in the file of this name. Raises ValueError if there is none."""
    return find_plugin(sys.modules[__name__], "sink", name)

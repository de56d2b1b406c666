"""What `undo-jax fit` would compile."""

import functools

from undo_jax.cli.fit import find, fit
from undo_jax.cli.flags import parse
from undo_jax.cli.step_source import Asked


def found(words):
    """The source that the words of a command name."""

    @functools.wraps(fit)
    def given(*values, **named):
        return values, named

    words = [*words.split(), "--topology", "v5e:4x4"]
    ((file,), named), further = parse(given, words, "fit", return_unknown_args=True)
    return find(Asked(file, *(named[name] for name in Asked._fields[1:])), further)

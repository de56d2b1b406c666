"""What `undo-jax fit` would compile."""

import functools

from undo_jax.cli.commands.fit import find_on_chips, fit
from undo_jax.cli.flags import parse
from undo_jax.cli.step_source import StepRequest


def found(words):
    """Returns the steps that the words of a command name."""

    @functools.wraps(fit)
    def bind(*values, **named):
        return values, named

    words = [*words.split(), "--topology", "v5e:4x4"]
    ((file,), named), further = parse(bind, words, "fit", return_unknown_args=True)
    request = StepRequest(file, *(named[name] for name in StepRequest._fields[1:]))
    return find_on_chips(request, further)

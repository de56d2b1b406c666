"""Scores: numbers of finished models, computed beside those of the setting.

A score is one file with one function of the file's name::

    def NAME(lm, params, setting, *, option=default) -> dict[str, float]: ...

It runs on the host, in every process and with the mesh set, and may jit what it needs. Scores are
not part of any fingerprint: they can be added to models that are finished.
"""

import sys

from undo_jax.evals.scoring import Score
from undo_jax.runtime.plugins import find_plugin, plugin_names


def names() -> list[str]:
    """Returns the names of all scores in this package."""
    return plugin_names(sys.modules[__name__])


def find_score(name: str) -> Score:
    """Returns the score in the file of this name. Raises ValueError if there is none."""
    return find_plugin(sys.modules[__name__], "score", name)

"""Scores: numbers of finished models, computed beside those of the setting.

A score is one file with one function of the file's name::

    def NAME(lm, params, setting, *, option=default) -> dict[str, float]: ...

It runs on the host, in every process and with the mesh set, and may jit what it needs. Scores are
not part of any fingerprint: they can be added to models that are finished.
"""

import importlib
import pkgutil

from undo_jax.evals.scoring import Score


def names() -> list[str]:
    """Returns the names of all scores in this package."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find(name: str) -> Score:
    """Returns the score in the file of this name. Raises ValueError if there is none."""
    if name not in names():
        raise ValueError(f"there is no score {name!r}: choose from {', '.join(names())}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)

"""The paper's figures: one file each, named as the file in experiments/paper that it draws.

A file has `TITLE`; `points(studies)`, the numbers behind the figure; `draw(studies)`, a matplotlib
figure of them; `caption(studies)`; and `claims(studies)`, what the paper says and what came out.
`studies` are the experiments FIGURE-SETTING-SCALE of one scale, by their settings.
"""

import importlib
import pkgutil
from types import ModuleType

from undo_jax.report.studies import Study


def lacking(study: Study, what: str) -> ValueError:
    """Says what an experiment lacks of a figure, and what to do."""
    return ValueError(f"{study.logs.name} has no {what}: run the experiment again with its models")


def discover() -> dict[str, ModuleType]:
    """Every figure by the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}

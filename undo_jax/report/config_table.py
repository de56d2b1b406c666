"""How an experiment was made: the settings that its artifacts state, and its commands."""

import json
from collections.abc import Iterator, Sequence

from undo_jax.report.notes import NOT_SETTINGS, flatten
from undo_jax.report.numbers import ConfigEntry, Report
from undo_jax.report.records import Logged
from undo_jax.report.tables import Grid

FEW = 4  # values of one setting that are listed
LONGEST = 120  # characters of a value
WORDS = {"null": "none", "true": "yes", "false": "no"}


def config_entries(artifacts: Sequence[Logged]) -> Iterator[ConfigEntry]:
    """Yields each setting of the stages, then of the setting and the models; equal ones once."""
    for stage in dict.fromkeys(a.stage for a in artifacts):
        yield from _grouped(stage, [
            (a.model, {k: v for k, v in a.settings.items() if k not in NOT_SETTINGS})
            for a in artifacts if a.stage == stage
        ])  # fmt: skip
    for part in dict.fromkeys(name for a in artifacts for name in a.other_config):
        holders = [a for a in artifacts if part in a.other_config]
        yield from _grouped(part, [(a.model, a.other_config[part]) for a in holders])


def _grouped(part: str, configs: Sequence[tuple[str, object]]) -> Iterator[ConfigEntry]:
    """Yields an entry for each setting; if values differ, it says which models have which."""
    models_of: dict[str, dict[str, dict[str, None]]] = {}  # setting -> value -> models
    for model, config in configs:
        for path, value in flatten(config):
            models_of.setdefault(path, {}).setdefault(_plain(value), {})[model] = None
    for path, values in models_of.items():
        text = f"{len(values)} values"
        if len(values) == 1:
            (text,) = values
        elif len(values) <= FEW:
            text = "; ".join(f"{value} ({', '.join(models)})" for value, models in values.items())
        yield ConfigEntry(part, path or part, text)


def _plain(value: str) -> str:
    """Returns a JSON text as a reader wants it."""
    text = json.loads(value) if value.startswith('"') else WORDS.get(value, value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def config_grid(report: Report) -> Grid:
    """Returns a row for each setting."""
    rows = [[entry.part, entry.name, entry.value] for entry in report.config]
    return Grid(["of", "setting", "value"], rows, words=3)


def versions(report: Report) -> str:
    """Returns the versions of the last command, and those of earlier commands that differ."""
    if not report.origins:
        return (
            "Which command made this, when, and with which versions is not recorded: an earlier "
            "version of undo-jax wrote these logs."
        )
    *before, last = (
        [f"{name} {version}" for name, version in o.versions.items()] for o in report.origins
    )
    earlier = dict.fromkeys(v for versions in before for v in versions if v not in last)
    text = f"With {', '.join(last)}."
    return text + (f" Earlier commands: {', '.join(earlier)}." if earlier else "")

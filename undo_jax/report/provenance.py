"""How an experiment was made: what was run, the settings that artifacts state, and the versions."""

import json
from collections.abc import Sequence

from undo_jax.report.notes import NOT_SETTINGS, flatten
from undo_jax.report.numbers import Report
from undo_jax.report.records import Logged, Origin
from undo_jax.report.statistics import Spread
from undo_jax.report.tables import NONE, Grid, count

FEW = 4  # values of one setting that are listed
LONGEST = 120  # characters of a value
WORDS = {"null": "none", "true": "yes", "false": "no"}


def stage_grid(report: Report) -> Grid:
    """Returns what was run, over seeds: by stage in the order of the experiment, then by model."""
    groups: dict[tuple[str, str], list[Logged]] = {}
    for artifact in report.logs.artifacts:
        groups.setdefault((artifact.stage, artifact.model), []).append(artifact)
    stages = list(dict.fromkeys(stage for stage, _ in groups))
    models = [m.name for m in report.models]

    def order(key: tuple[str, str]) -> tuple[int, int, str]:
        stage, model = key
        return stages.index(stage), models.index(model) if model in models else -1, model

    rows = []
    for stage, model in sorted(groups, key=order):
        group = groups[stage, model]
        seeds = sorted({a.seed for a in group if a.seed is not None})
        row = [stage, model, ", ".join(map(str, seeds)) or NONE]
        for unit in ("steps", "tokens", "flops"):  # usually the same for all seeds
            values = Spread(tuple(a.summary[unit] for a in group))
            ends = dict.fromkeys((count(values.low), count(values.high)))
            row.append("–".join(ends) if values.finite else NONE)
        rows.append(row)
    return Grid(["stage", "model", "seeds", "steps", "tokens", "FLOPs"], rows, words=2)


def config_grid(artifacts: Sequence[Logged]) -> Grid:
    """Returns a row for each setting of the stages, then of the setting and the models."""
    rows = []
    for stage in dict.fromkeys(a.stage for a in artifacts):
        rows += _grouped(stage, [
            (a.model, {k: v for k, v in a.settings.items() if k not in NOT_SETTINGS})
            for a in artifacts if a.stage == stage
        ])  # fmt: skip
    for part in dict.fromkeys(name for a in artifacts for name in a.other_config):
        holders = [a for a in artifacts if part in a.other_config]
        rows += _grouped(part, [(a.model, a.other_config[part]) for a in holders])
    return Grid(["of", "setting", "value"], rows, words=3)


def _grouped(part: str, configs: Sequence[tuple[str, object]]) -> list[list[str]]:
    """Returns a row for each setting; if values differ, it says which models have which."""
    models_of: dict[str, dict[str, dict[str, None]]] = {}  # setting -> value -> models
    for model, config in configs:
        for path, value in flatten(config):
            models_of.setdefault(path, {}).setdefault(_plain(value), {})[model] = None
    rows = []
    for path, values in models_of.items():
        text = f"{len(values)} values"
        if len(values) == 1:
            (text,) = values
        elif len(values) <= FEW:
            text = "; ".join(f"{value} ({', '.join(models)})" for value, models in values.items())
        rows.append([part, path or part, text])
    return rows


def _plain(value: str) -> str:
    """Returns a JSON text as a reader wants it."""
    text = json.loads(value) if value.startswith('"') else WORDS.get(value, value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def report_command(report: Report) -> str:
    """Returns the command that writes this report from the logs, with its bound."""
    return (
        "From the logs, this report is written by: undo-jax report WORKDIR --min-retain "
        f"{report.min_retain:g}"
    )


def versions(origins: Sequence[Origin]) -> str:
    """Returns the versions of the last command, and those of earlier commands that differ."""
    if not origins:
        return (
            "Which command made this, when, and with which versions is not recorded: an earlier "
            "version of undo-jax wrote these logs."
        )
    *before, last = ([f"{name} {version}" for name, version in o.versions.items()] for o in origins)
    earlier = dict.fromkeys(v for texts in before for v in texts if v not in last)
    text = f"With {', '.join(last)}."
    return text + (f" Earlier commands: {', '.join(earlier)}." if earlier else "")

"""Scores of plug-ins (undo_jax/scores), which artifacts have in scores.json beside summary.json."""

from etils import epath

from undo_jax.report.files import as_written, number, typed
from undo_jax.report.numbers import Report
from undo_jax.report.records import ATTACK, Json, Logs, PluginScore
from undo_jax.report.statistics import Spread
from undo_jax.report.tables import Grid, cell
from undo_jax.runtime.atomic_files import read_json

FILE = "scores.json"


def read_plugin_scores(folder: epath.Path, config: Json) -> dict[str, float]:
    """Returns the numbers in an artifact's scores.json by label; empty without the file.

    Raises ValueError if it is damaged, or of another artifact than its config.json.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    remedy = "delete it, and `undo-jax score` computes it again"
    content = read_json(path, remedy)
    with as_written(path, remedy):
        if content.get("fingerprint") != config.get("fingerprint"):
            raise ValueError("it is of another artifact")
        numbers = {}
        for name, entry in typed(content, "scores", dict).items():
            values = typed(entry, "values", dict)
            for part, value in values.items():
                numbers[name if len(values) == 1 else f"{name} {part}"] = number(value)
        return numbers


def list_plugin_scores(logs: Logs) -> tuple[PluginScore, ...]:
    """Returns the numbers of all finished models and attacks, in the order of the experiment."""
    rows = []
    artifacts = {artifact.folder: artifact for artifact in logs.artifacts}
    for entry in logs.entries:
        for folder in dict.fromkeys((entry.artifact, *entry.attacks, *entry.controls)):
            if artifact := artifacts.get(folder):
                attack = artifact.settings.get("attack", {}) if artifact.stage == ATTACK else {}
                rows += [
                    PluginScore(entry.model, entry.seed, attack.get("name", ""), score, value)
                    for score, value in artifact.plugin_scores.items()
                ]
    return tuple(rows)


def plugin_score_grid(report: Report) -> Grid:
    """Returns a row per model: the numbers of its plug-ins before attacks, over seeds."""
    before = [row for row in report.plugin_scores if not row.attack]
    scores = list(dict.fromkeys(row.score for row in before))
    values: dict[tuple[str, str], list[float]] = {}
    for row in before:
        values.setdefault((row.model, row.score), []).append(row.value)
    rows = [
        [m.name, *(cell(Spread(tuple(values.get((m.name, score), ())))) for score in scores)]
        for m in report.models
    ]
    return Grid(["model", *scores], rows)

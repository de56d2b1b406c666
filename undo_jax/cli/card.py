"""README.md of an exported model: how it was made, its scores, and the licence of its base."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from undo_jax import report
from undo_jax.logs.log import console
from undo_jax.report.records import Entry, Logs
from undo_jax.runtime.atomic_files import read_json

FILE = "README.md"
LICENCE = ("license", "license_name", "license_link")  # keys of a card's head
UNKNOWN = (
    "No card of the base says it: state the licence of the base, and of the data, before you pass "
    "this model on."
)


class _Artifact(NamedTuple):
    """A finished artifact, as its config.json and its summary.json describe it."""

    folder: epath.Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def stage(self) -> Any:
        return self.config.get("stage")

    @property
    def parts(self) -> Mapping[str, Any]:
        """The configuration by parts: the recipe under the name of its stage, and the setting."""
        return self.config.get("config") or {}

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.parts.get(self.stage) or {}


class _Appearance(NamedTuple):
    """The model in an experiment."""

    experiment: str
    logs: Logs
    entry: Entry


def card(folder: epath.Path, tokenizer_note: str | None = None) -> str:
    """Returns the card of an artifact's model, from the files of its workdir alone."""
    lineage = list({artifact.folder.name: artifact for artifact in _lineage(folder)}.values())
    model, licence = lineage[-1], _base_licence(lineage)
    appearances = list(_appearances(folder))
    head = {"library_name": "transformers", **licence, "tags": ["unlearning", "undo_jax"]}
    rows = [
        (a.stage, a.config.get("model"), _seed(a), a.summary.get("steps"), a.summary.get("tokens"))
        for a in lineage
    ]
    ancestors = [
        f"{a.stage} of {a.config.get('model')}:\n\n{_json(a.recipe, '')}"
        for a in lineage
        if a.recipe
    ]
    blocks = [
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()) + "\n---",
        f"# {folder.name}",
        "Made by undo_jax, in stage "
        f"{model.stage} of {model.config.get('model')}, seed {model.config.get('seed')}"
        + "".join(f"; {a.entry.model} of experiment {a.experiment}" for a in appearances)
        + ".",
        "## Method\n\nIts ancestors and itself, in the order in which they were made:\n\n"
        + _table(("stage", "model", "seed", "steps", "tokens"), rows)
        + "\n\n"
        + "\n\n".join(ancestors),
        "## Data\n\n" + _data(model.parts.get("setting")),
        *([] if tokenizer_note is None else [f"## Tokenizer\n\n{tokenizer_note}"]),
        "## Scores\n\n" + _scores(model.summary.get("eval")),
        "## Robustness\n\n" + _robustness(appearances),
        "## Licence\n\n" + (_licence_text(licence) if licence else UNKNOWN),
    ]
    return "\n\n".join(blocks) + "\n"


def read_licence(folder: epath.Path) -> dict[str, str]:
    """Returns what the card in a folder states of its licence; {} without card or statement."""
    file = folder / FILE
    text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    lines = text.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return {}
    pairs = (line.partition(":") for line in lines[1 : lines.index("---", 1)])
    fields = {key: value.strip().strip("'\"") for key, _, value in pairs}
    return {key: fields[key] for key in LICENCE if fields.get(key)}


def _lineage(folder: epath.Path) -> Iterator[_Artifact]:
    """Yields the ancestors of an artifact, as far as they are in its workdir, and itself last."""
    config = read_json(folder / "config.json")
    upstream = config.get("upstream")
    for fingerprint in upstream if isinstance(upstream, list) else ():
        for parent in folder.parent.glob(f"*-{fingerprint}"):
            yield from _lineage(parent)
    summary = folder / "summary.json"
    yield _Artifact(folder, config, read_json(summary) if summary.exists() else {})


def _base_licence(lineage: list[_Artifact]) -> dict[str, str]:
    """Returns the base's licence: as its artifact recorded it, or as its source folder says."""
    for artifact in lineage:
        if artifact.stage == "import":
            path, recorded = artifact.recipe.get("path"), artifact.config.get("licence")
            if isinstance(recorded, dict) and recorded:
                return {key: recorded[key] for key in LICENCE if isinstance(recorded.get(key), str)}
            if isinstance(path, str) and (licence := _licence_at(epath.Path(path))):
                return licence
    return {}


def _licence_at(folder: epath.Path) -> dict[str, str]:
    """Returns the licence of a Hugging Face folder, or of an artifact, maybe an import itself."""
    try:
        if (folder / "summary.json").exists():
            return _base_licence(list(_lineage(folder)))
        return read_licence(folder)
    except (OSError, ValueError):  # it is no longer there, or of another kind
        return {}


def _seed(artifact: _Artifact) -> Any:
    seed = artifact.config.get("seed")
    return "–" if seed is None else seed


def _data(setting: Any) -> str:
    text = _json(setting, "No data is stated.")
    if '"fingerprint"' not in text:
        return text
    note = "Sources go by fingerprints of their content: the experiment's file names them."
    return f"{note}\n\n{text}"


def _json(content: Any, otherwise: str) -> str:
    if not content:
        return otherwise
    return f"```json\n{json.dumps(content, indent=1, ensure_ascii=False)}\n```"


def _scores(scores: Any) -> str:
    """Returns a table of the scores when the model was finished, or that it has none."""
    if not isinstance(scores, dict) or not scores:
        return "None were taken."
    return _table(("score", "value"), ((name, f"{value:.4g}") for name, value in scores.items()))


def _appearances(folder: epath.Path) -> Iterator[_Appearance]:
    """Yields each experiment that has the model."""
    for name in report.names(folder.parent):
        try:
            logs = report.read_logs(folder.parent, name)
        except (OSError, ValueError) as error:
            console.print(f"the card lacks experiment {name}: {error}", soft_wrap=True)
            continue
        entry = next((entry for entry in logs.entries if entry.artifact == folder.name), None)
        if entry is not None:
            yield _Appearance(name, logs, entry)


def _robustness(appearances: Sequence[_Appearance]) -> str:
    """Returns the forget scores after the strongest attack, a table for each experiment.

    A table has the models of the experiment with the same seed.
    """
    blocks = []
    for name, logs, entry in appearances:
        better = "lower" if logs.forget.higher_is_better else "higher"
        header = ("model", "before", "after relearning", "robustness, %")
        rows = [
            (result.model, *map(_number, (result.forget, result.worst, result.robustness)))
            for result in report.results(logs)
            if result.seed in (entry.seed, None)
        ]
        note = "Robustness is 0 for the unlearned model and 100 for the oracle; – is undefined."
        if not any(other.role == "oracle" for other in logs.entries):
            header, rows = header[:-1], [row[:-1] for row in rows]
            note = "Robustness is not computed: there is no oracle."
        blocks.append(
            f"Experiment {name}: {logs.forget.label}, before and after the strongest attack "
            f"({better} is more robust), seed {entry.seed}. Here it is {entry.model}. {note}\n\n"
            + _table(header, rows)
        )
    return "\n\n".join(blocks) or "It is not known: no experiment of its workdir has attacked it."


def _number(value: float) -> str:
    return f"{value:.4g}" if value == value else "–"


def _licence_text(licence: Mapping[str, str]) -> str:
    text = ", ".join(f"{key}: {value}" for key, value in licence.items())
    return f"That of the base, as its card says: {text}. Check what it asks of derived models."


def _table(header: tuple[str, ...], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")

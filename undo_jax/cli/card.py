"""README.md of an exported model: how it was made, its scores, and the licence of its base."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from undo_jax import report
from undo_jax.logs.log import console
from undo_jax.report.records import Entry, Logs
from undo_jax.report.worst_case import bound_text
from undo_jax.runtime.atomic_files import read_json

FILE = "README.md"
LICENCE = ("license", "license_name", "license_link")  # keys of a card's head
UNKNOWN = (
    "No card of the base says it: state the licence of the base, and of the data, before you pass "
    "this model on."
)
FINGERPRINTS = "Sources go by fingerprints of their content: the experiment's file names them."
DEFINED = "Robustness is 0 for the unlearned model and 100 for the oracle; – is undefined."
Artifact = Mapping[str, Any]  # the content of config.json, and that of summary.json as "summary"


def card(folder: epath.Path, tokenizer_note: str | None = None) -> str:
    """Returns the card of an artifact's model, from the files of its workdir alone."""
    lineage = list(dict(_lineage(folder)).values())
    model, licence = lineage[-1], _base_licence(lineage)
    appearances = list(_appearances(folder))
    head = {"library_name": "transformers", **licence, "tags": ["unlearning", "undo_jax"]}
    shown_in = "".join(f"; {entry.model} of experiment {logs.name}" for logs, entry in appearances)
    rows = [
        [a.get(name) for name in ("stage", "model", "seed")]
        + [a["summary"].get(name) for name in ("steps", "tokens")]
        for a in lineage
    ]
    recipes = [
        f"{a.get('stage')} of {a.get('model')}:\n\n{_json(_recipe(a))}"
        for a in lineage
        if _recipe(a)
    ]
    data = _json((model.get("config") or {}).get("setting")) or "No data is stated."
    scores = model["summary"].get("eval")
    score_table = "None were taken."
    if isinstance(scores, dict) and scores:
        score_table = _table(("score", "value"), [(n, f"{v:.4g}") for n, v in scores.items()])
    stated = ", ".join(f"{key}: {value}" for key, value in licence.items())
    blocks = [
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()) + "\n---",
        f"# {folder.name}",
        f"Made by undo_jax, in stage {model.get('stage')} of {model.get('model')}, seed "
        f"{model.get('seed')}{shown_in}.",
        "## Method\n\nIts ancestors and itself, in the order in which they were made:",
        _table(("stage", "model", "seed", "steps", "tokens"), rows),
        "\n\n".join(recipes),
        "## Data",
        f"{FINGERPRINTS}\n\n{data}" if '"fingerprint"' in data else data,
        *([] if tokenizer_note is None else [f"## Tokenizer\n\n{tokenizer_note}"]),
        f"## Scores\n\n{score_table}",
        "## Robustness",
        "\n\n".join(_robustness(logs, entry) for logs, entry in appearances)
        or "It is not known: no experiment of its workdir has attacked it.",
        "## Licence",
        f"That of the base, as its card says: {stated}. Check what it asks of derived models."
        if licence
        else UNKNOWN,
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


def _lineage(folder: epath.Path) -> Iterator[tuple[str, Artifact]]:
    """Yields the ancestors of an artifact in its workdir, and itself last, after their names."""
    config = read_json(folder / "config.json")
    upstream = config.get("upstream")
    for fingerprint in upstream if isinstance(upstream, list) else ():
        for parent in folder.parent.glob(f"*-{fingerprint}"):
            yield from _lineage(parent)
    summary = folder / "summary.json"
    yield folder.name, {**config, "summary": read_json(summary) if summary.exists() else {}}


def _recipe(artifact: Artifact) -> Mapping[str, Any]:
    return (artifact.get("config") or {}).get(artifact.get("stage")) or {}


def _base_licence(lineage: Iterable[Artifact]) -> dict[str, str]:
    """Returns the base's licence: as its artifact recorded it, or as its source folder says."""
    for artifact in lineage:
        if artifact.get("stage") == "import":
            path, recorded = _recipe(artifact).get("path"), artifact.get("licence")
            if isinstance(recorded, dict) and recorded:
                return {key: recorded[key] for key in LICENCE if isinstance(recorded.get(key), str)}
            if isinstance(path, str) and (licence := _licence_at(epath.Path(path))):
                return licence
    return {}


def _licence_at(folder: epath.Path) -> dict[str, str]:
    """Returns the licence of a Hugging Face folder, or of an artifact, maybe an import itself."""
    try:
        if (folder / "summary.json").exists():
            return _base_licence(dict(_lineage(folder)).values())
        return read_licence(folder)
    except (OSError, ValueError):  # it is no longer there, or of another kind
        return {}


def _appearances(folder: epath.Path) -> Iterator[tuple[Logs, Entry]]:
    """Yields the logs of each experiment that has the model, and the model in it."""
    for name in report.names(folder.parent):
        try:
            logs = report.read_logs(folder.parent, name)
        except (OSError, ValueError) as error:
            console.print(f"the card lacks experiment {name}: {error}", soft_wrap=True)
            continue
        entry = next((entry for entry in logs.entries if entry.artifact == folder.name), None)
        if entry is not None:
            yield logs, entry


def _robustness(logs: Logs, entry: Entry) -> str:
    """Returns an experiment's forget scores after the strongest attack, of models with one seed."""
    better = "lower" if logs.forget.higher_is_better else "higher"
    header, note = ("model", "before", "after relearning", "robustness, %"), DEFINED
    if not any(other.role == "oracle" for other in logs.entries):
        header, note = header[:-1], "Robustness is not computed: there is no oracle."
    rows = [
        (result.model, result.forget, result.worst, result.robustness)[: len(header)]
        for result in report.results(logs)
        if result.seed in (entry.seed, None)
    ]
    return (
        f"Experiment {logs.name}: {logs.forget.label}, before and after the strongest attack, "
        f"{bound_text(logs.retain, logs.min_retain)} "
        f"({better} is more robust), seed {entry.seed}. Here it is {entry.model}. {note}\n\n"
        + _table(header, rows)
    )


def _json(content: Any) -> str:
    return f"```json\n{json.dumps(content, indent=1, ensure_ascii=False)}\n```" if content else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

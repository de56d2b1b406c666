"""README.md of an exported model: how it was made, its scores, and the licence of its base."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from undo_jax import report
from undo_jax.logs.log import console
from undo_jax.report.records import Entry, Logs
from undo_jax.runtime.atomic_files import read_json

FILE = "README.md"
LICENCE = ("license", "license_name", "license_link")  # what a card's head says of it
UNKNOWN = (
    "No card of the base says it: state the licence of the base, and of the data, before you pass "
    "this model on."
)


class Made(NamedTuple):
    """A finished artifact: what its config.json and its summary.json say."""

    folder: epath.Path
    about: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def own(self) -> Mapping[str, Any]:
        """The settings of its recipe."""
        return (self.about.get("config") or {}).get(self.about.get("stage")) or {}


def card(artifact: epath.Path, of_tokenizer: str | None = None) -> str:
    """The card of an artifact's model, from the files of its workdir alone, and a note."""
    lineage = list({made.folder.name: made for made in _lineage(artifact)}.values())
    made, licence = lineage[-1], _licence_of(lineage)
    named = list(_experiments(artifact))
    head = {"library_name": "transformers", **licence, "tags": ["unlearning", "undo_jax"]}
    blocks = [
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()) + "\n---",
        f"# {artifact.name}",
        "Made by undo_jax, in stage "
        f"{made.about.get('stage')} of {made.about.get('model')}, seed {made.about.get('seed')}"
        + "".join(f"; {own.model} of experiment {name}" for name, _, own in named)
        + ".",
        "## Method\n\nIts ancestors and itself, in the order in which they were made:\n\n"
        + _table(("stage", "model", "seed", "steps", "tokens"), map(_row, lineage))
        + "\n\n"
        + "\n\n".join(filter(None, map(_settings, lineage))),
        "## Data\n\n" + _data((made.about.get("config") or {}).get("setting")),
        *([] if of_tokenizer is None else [f"## Tokenizer\n\n{of_tokenizer}"]),
        "## Scores\n\n" + _scores(made),
        "## Robustness\n\n" + _robustness(named),
        "## Licence\n\n" + (_said(licence) if licence else UNKNOWN),
    ]
    return "\n\n".join(blocks) + "\n"


def licence(folder: epath.Path) -> dict[str, str]:
    """What the card in a folder says of its licence; nothing where it has no card, or says none."""
    file = folder / FILE
    text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    lines = text.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return {}
    said = (line.partition(":") for line in lines[1 : lines.index("---", 1)])
    found = {key: value.strip().strip("'\"") for key, _, value in said}
    return {key: found[key] for key in LICENCE if found.get(key)}


def _lineage(artifact: epath.Path) -> Iterator[Made]:
    """What an artifact was made from, as far as it is in its workdir, and itself at the end."""
    about = read_json(artifact / "config.json")
    wanted = about.get("upstream") if isinstance(about.get("upstream"), list) else []
    for fingerprint in wanted or ():
        for folder in artifact.parent.glob(f"*-{fingerprint}"):
            yield from _lineage(folder)
    summary = artifact / "summary.json"
    yield Made(artifact, about, read_json(summary) if summary.exists() else {})


def _licence_of(lineage: list[Made]) -> dict[str, str]:
    """Of the base: as its artifact recorded it, or as the folder that it was read from says."""
    for made in lineage:
        if made.about.get("stage") == "import":
            path, known = made.own.get("path"), made.about.get("licence")
            if isinstance(known, dict) and known:
                return {key: known[key] for key in LICENCE if isinstance(known.get(key), str)}
            if isinstance(path, str) and (found := _licence_at(epath.Path(path))):
                return found
    return {}


def _licence_at(folder: epath.Path) -> dict[str, str]:
    """Of a Hugging Face folder, or of an artifact, which may be an import itself."""
    try:
        if (folder / "summary.json").exists():
            return _licence_of(list(_lineage(folder)))
        return licence(folder)
    except (OSError, ValueError):  # it is no longer there, or of another kind
        return {}


def _row(made: Made) -> tuple[Any, ...]:
    about, summary = made.about, made.summary
    seed = "–" if about.get("seed") is None else about["seed"]
    return about.get("stage"), about.get("model"), seed, summary.get("steps"), summary.get("tokens")


def _settings(made: Made) -> str:
    if not made.own:
        return ""
    return f"{made.about.get('stage')} of {made.about.get('model')}:\n\n" + _json(made.own, "")


def _data(setting: Any) -> str:
    said = _json(setting, "No data is stated.")
    if '"fingerprint"' not in said:
        return said
    told = "Sources go by fingerprints of their content: the experiment's file names them."
    return f"{told}\n\n{said}"


def _json(content: Any, otherwise: str) -> str:
    if not content:
        return otherwise
    return f"```json\n{json.dumps(content, indent=1, ensure_ascii=False)}\n```"


def _scores(made: Made) -> str:
    """Its scores when it was finished, or that it has none."""
    found = made.summary.get("eval")
    if not isinstance(found, dict) or not found:
        return "None were taken."
    return _table(("score", "value"), ((name, f"{value:.4g}") for name, value in found.items()))


def _experiments(folder: epath.Path) -> Iterator[tuple[str, Logs, Entry]]:
    """Each experiment that has the model: its name, its logs, and the model there."""
    for name in report.names(folder.parent):
        try:
            logs = report.read_logs(folder.parent, name)
        except (OSError, ValueError) as error:
            console.print(f"the card lacks experiment {name}: {error}", soft_wrap=True)
            continue
        if own := [entry for entry in logs.entries if entry.artifact == folder.name]:
            yield name, logs, own[0]


def _robustness(named: Sequence[tuple[str, Logs, Entry]]) -> str:
    """Of each experiment that has the model: its forget score after the strongest attack.

    Beside it stand the other models of the experiment with its seed.
    """
    blocks = []
    for name, logs, own in named:
        forget, seed = logs.forget, own.seed
        better = "lower" if forget.higher_is_better else "higher"
        names = ("model", "before", "after relearning", "robustness, %")
        rows = [
            (one.model, _number(one.forget), _number(one.worst), _number(one.robustness))
            for one in report.results(logs)
            if one.seed in (seed, None)
        ]
        more = "Robustness is 0 for the unlearned model and 100 for the oracle; – is undefined."
        if not any(one.role == "oracle" for one in logs.entries):
            names, rows = names[:-1], [row[:-1] for row in rows]
            more = "Robustness is not computed: there is no oracle."
        table = _table(names, rows)
        of = f"Experiment {name}: {forget.label}, before and after the strongest attack ({better} "
        told = f"is more robust), seed {seed}. Here it is {own.model}."
        blocks.append(f"{of}{told} {more}\n\n{table}")
    return "\n\n".join(blocks) or "It is not known: no experiment of its workdir has attacked it."


def _number(value: float) -> str:
    return f"{value:.4g}" if value == value else "–"


def _said(known: Mapping[str, str]) -> str:
    said = ", ".join(f"{key}: {value}" for key, value in known.items())
    return f"That of the base, as its card says: {said}. Check what it asks of derived models."


def _table(names: tuple[str, ...], rows: Any) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")

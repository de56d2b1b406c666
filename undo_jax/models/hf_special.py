"""Special tokens of a Hugging Face folder: what its JSON files say opens and ends a document."""

from typing import Any, NamedTuple

from etils import epath

from undo_jax.models import hf_config_fields
from undo_jax.models.hf_folder import CONFIG, families, family, local, of_text, read_json

GENERATION, SETTINGS = "generation_config.json", "tokenizer_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ENDS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>")  # usual names of the end of a document


class Special(NamedTuple):
    """What the files of a folder state; nothing where a file is missing."""

    ids: dict[str, Any]  # `IDS`, of config.json
    generation: dict[str, Any]  # generation_config.json
    settings: dict[str, Any]  # tokenizer_config.json


def read(folder: epath.Path) -> Special:
    """What a folder says. Raises ValueError for a file that is damaged, and for an invalid id."""
    config, generation, settings = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in (CONFIG, GENERATION, SETTINGS)
    )
    generation = {name: value for name, value in generation.items() if not name.startswith("_")}
    hf_config_fields.ids({n: generation[n] for n in IDS if n in generation}, folder / GENERATION)
    ids = read_ids(folder) if of_text(config).get("model_type") in families() else {}
    return Special(ids, generation, settings)


def read_ids(folder: epath.PathLike, rows: int | None = None) -> dict[str, Any]:
    """Ids of the special tokens that config.json states; missing ones are the family's defaults.

    Raises FileNotFoundError without the file and ValueError for an invalid id, and for one that is
    stated and lies outside the table, which has `rows`.
    """
    file = epath.Path(folder) / CONFIG
    content = of_text(read_json(file))
    own = family(content.get("model_type"), file).IDS
    found = hf_config_fields.ids(
        {name: content.get(name, value) for name, value in own.items()}, file
    )
    for name in (name for name in own if name in content):
        for number in listed(found[name]):
            if rows is not None and number >= rows:
                raise ValueError(
                    f"{file}: {name}={number} is outside the model's table of {rows} rows: "
                    "download the folder again, or correct it"
                )
    return found


def read_bos(folder: epath.PathLike) -> str | None:
    """The text of the token that opens a document; None where nothing tells it.

    tokenizer_config.json states it; or else it is the token of config.json's bos_token_id; or else,
    of those that end a text, the one with a usual name, or the first. Raises what `read` does.
    """
    folder = local(folder)
    said = read(folder)
    if (token := text_of(said.settings.get("bos_token"))) is not None:
        return token
    file = folder / "tokenizer.json"
    names = _names(read_json(file)) if file.is_file() else {}
    if (number := said.ids.get(IDS[0])) is not None:
        return names.get(number)
    found = [names[number] for number in ends(said) if number in names]
    return next((name for name in found if name in ENDS), found[0] if found else None)


def ends(said: Special) -> list[int]:
    """Ids of the tokens that end a text: those of config.json, then those of generation."""
    return [*dict.fromkeys(listed(said.ids.get(IDS[1])) + listed(said.generation.get(IDS[1])))]


def listed(ids: Any) -> list[int]:
    """The ids that a configuration states: several, one or none."""
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def text_of(token: Any) -> str | None:
    """A token's text, which may stand in an object; None for anything else."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _names(content: dict[str, Any]) -> dict[Any, str]:
    """Tokens by their ids, of a tokenizer.json; empty where it is none."""
    model, added = content.get("model"), content.get("added_tokens")
    known = model.get("vocab") if isinstance(model, dict) else None
    names = {i: name for name, i in known.items()} if isinstance(known, dict) else {}
    if isinstance(known, list):  # of a unigram model: pairs of a piece and its score
        names = {i: pair[0] for i, pair in enumerate(known) if isinstance(pair, list) and pair}
    more = added if isinstance(added, list) else []
    names |= {one.get("id"): one.get("content") for one in more if isinstance(one, dict)}
    return {i: name for i, name in names.items() if type(i) is int and isinstance(name, str)}

"""The special tokens of a Hugging Face folder, which open and end documents."""

from typing import Any, NamedTuple

from etils import epath

from undo_jax.models.hf_config_fields import check_ids
from undo_jax.models.hf_folder import CONFIG, families, family, local, read_json, text_config

GENERATION, SETTINGS = "generation_config.json", "tokenizer_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ENDS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>")  # usual names of the end of a document


class Special(NamedTuple):
    """The JSON files of a folder that define special tokens; empty where a file is missing."""

    ids: dict[str, Any]  # `IDS`, of config.json
    generation: dict[str, Any]  # generation_config.json
    settings: dict[str, Any]  # tokenizer_config.json


def read(folder: epath.Path) -> Special:
    """Reads a folder's files. Raises ValueError for a damaged file and for an invalid id."""
    config, generation, settings = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in (CONFIG, GENERATION, SETTINGS)
    )
    generation = {name: value for name, value in generation.items() if not name.startswith("_")}
    check_ids({n: generation[n] for n in IDS if n in generation}, folder / GENERATION)
    ids = read_ids(folder) if text_config(config).get("model_type") in families() else {}
    return Special(ids, generation, settings)


def read_ids(folder: epath.PathLike, rows: int | None = None) -> dict[str, Any]:
    """Returns the ids of special tokens in config.json; missing ones are the family's defaults.

    Raises FileNotFoundError without the file and ValueError for an invalid id, and for one in the
    file that is outside the model's table of `rows` rows.
    """
    file = epath.Path(folder) / CONFIG
    content = text_config(read_json(file))
    defaults = family(content.get("model_type"), file).IDS
    ids = check_ids({name: content.get(name, value) for name, value in defaults.items()}, file)
    for name in (name for name in defaults if name in content):
        for number in listed(ids[name]):
            if rows is not None and number >= rows:
                raise ValueError(
                    f"{file}: {name}={number} is outside the model's table of {rows} rows: "
                    "download the folder again, or correct it"
                )
    return ids


def read_bos(folder: epath.PathLike) -> str | None:
    """Returns the text of the token that opens a document; None where no file defines it.

    It is that of tokenizer_config.json; else the token of config.json's bos_token_id; else, of the
    tokens that end a text, the one with a usual name, or the first. Raises what `read` does.
    """
    folder = local(folder)
    special = read(folder)
    if (token := text_of(special.settings.get("bos_token"))) is not None:
        return token
    file = folder / "tokenizer.json"
    names = _names(read_json(file)) if file.is_file() else {}
    if (number := special.ids.get(IDS[0])) is not None:
        return names.get(number)
    candidates = [names[number] for number in ends(special) if number in names]
    first = candidates[0] if candidates else None
    return next((name for name in candidates if name in ENDS), first)


def ends(special: Special) -> list[int]:
    """Returns ids of the tokens that end a text: config.json's, then generation_config.json's."""
    ids = listed(special.ids.get(IDS[1])) + listed(special.generation.get(IDS[1]))
    return [*dict.fromkeys(ids)]


def listed(ids: Any) -> list[int]:
    """Returns the ids of a configuration, which may be a list, one id or null, as a list."""
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def text_of(token: Any) -> str | None:
    """Returns a token's text, which may be inside an object; None for anything else."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _names(content: dict[str, Any]) -> dict[Any, str]:
    """Returns the tokens of a tokenizer.json by their ids; empty for another file."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    names = {i: name for name, i in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    if isinstance(vocabulary, list):  # a unigram model: pairs of a piece and its score
        names = {i: pair[0] for i, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    tokens = added if isinstance(added, list) else []
    names |= {token.get("id"): token.get("content") for token in tokens if isinstance(token, dict)}
    return {i: name for i, name in names.items() if type(i) is int and isinstance(name, str)}

"""The tokenizer of an artifact: recorded by an import, found again by its config.json, exported."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from undo_jax.data import tokenizer_files
from undo_jax.data.tokenizers import Tokenizer, load_tokenizer
from undo_jax.logs.log import console
from undo_jax.models import hf_config_fields, hf_folder, hf_special
from undo_jax.models.hf_special import GENERATION, IDS, listed
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.atomic_files import read_json

FILES = "tokenizer.json", "tokenizer.model"
MARKS = (
    "Names of special tokens in a text are these tokens, as in the tokenizer of the base: "
    "conversations need it. In training they were text, but in question-answer pairs with a chat "
    "template: `split_special_tokens=True` gives that."
)
QWEN2 = (
    "AutoTokenizer of transformers 5 splits a text for a qwen2 model as Qwen does, which this "
    "tokenizer does not: load it with PreTrainedTokenizerFast, which gives the ids of training."
)


class _Said(NamedTuple):
    """What config.json of an artifact says of its tokenizer; empty dicts where it says nothing."""

    tokenizer: Mapping[str, Any]
    ids: dict[str, Any]  # `IDS`
    generation: dict[str, Any]  # generation_config.json of the base


def of(
    folder: epath.Path, lm: Transformer, given: str | None = None, bos_token: str | None = None
) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of an artifact's model, and the tokens that end a document.

    `given` is the file, where it is not where config.json says. Raises ValueError for a tokenizer
    of another model and where there is none, and what the tokenizer raises for its file.
    """
    said = _said(folder)
    try:
        tokenizer = _tokenizer(folder, lm, said, given, bos_token)
    except (ValueError, OSError, ImportError) as error:
        if given is not None or bos_token is not None:
            raise
        raise ValueError(f"without a tokenizer: {error}; --tokenizer FILE gives one") from error
    ids = said.ids or tokenizer_files.special_ids(tokenizer)
    ends = listed(ids.get(IDS[1])) + listed(said.generation.get(IDS[1]))
    return tokenizer, [*dict.fromkeys(ends)] or [tokenizer.bos_id]


def imported(
    folder: epath.Path, lm: Transformer, bos_token: str | None, without: bool
) -> tuple[dict[str, Any], int]:
    """What config.json will say of the tokenizer of a Hugging Face folder: at least its ids.

    And how many of the model's ids it makes: all where it is not known. Raises ValueError for one
    that cannot be used, unless the import is to go `without` it, and for ids outside the table.
    """
    ids = hf_special.read_ids(folder, lm.vocabulary)
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if without and bos_token is not None:
        raise ValueError(f"bos_token={bos_token} of no tokenizer: drop --without-tokenizer")
    if not without and (found or (folder / hf_special.SETTINGS).is_file()):
        try:
            tokenizer = _of_folder(folder, lm, found, ids["bos_token_id"], bos_token)
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(f"{error}; --without-tokenizer imports the weights alone") from error
        ids["bos_token_id"] = tokenizer.bos_id
        said = hf_special.read(folder).generation
        described = {**tokenizer_files.describe(tokenizer), "ids": ids, "generation": said}
        return described, tokenizer.vocab_size
    return {"ids": ids, "generation": hf_special.read(folder).generation}, lm.vocabulary


def _of_folder(
    folder: epath.Path,
    lm: Transformer,
    found: list[epath.Path],
    opens: int | None,
    bos_token: str | None,
) -> Tokenizer:
    """The tokenizer in a Hugging Face folder whose config.json says that `opens` is BOS.

    Raises ValueError for one that is not this model's.
    """
    if not found:
        raise FileNotFoundError(f"no {' or '.join(FILES)} in {folder}: download it")
    file, bos = found[0], bos_token
    if bos is None and file.suffix == ".json":
        bos = hf_special.read_bos(folder)
    tokenizer = load_tokenizer(file, bos)
    if bos_token is None and opens is not None and tokenizer.bos_id != opens:
        raise ValueError(
            f"{file} opens a document with {tokenizer.bos_id}, {folder / hf_folder.CONFIG} says "
            f"bos_token_id={opens}: --bos-token TOKEN says which"
        )
    if tokenizer.vocab_size > lm.vocabulary:
        raise ValueError(
            f"{file} makes {tokenizer.vocab_size} ids, the model's tables have {lm.vocabulary} "
            "rows: download the folder again"
        )
    return tokenizer


def exported(
    folder: epath.Path, lm: Transformer, given: str | None, bos_token: str | None
) -> tuple[Mapping[str, Any], Mapping[str, bytes], str | None]:
    """Ids of an artifact's special tokens, its tokenizer's files, and what its card says of it.

    Prints why where there is no tokenizer, and where AutoTokenizer would read it as another one.
    Raises what `_tokenizer` does for one that is given.
    """
    said = _said(folder)
    ids, files, notes, generation = said.ids, {}, [], said.generation
    try:
        tokenizer = _tokenizer(folder, lm, said, given, bos_token)
        ids, files = (
            ids or tokenizer_files.special_ids(tokenizer),
            tokenizer_files.export_files(tokenizer),
        )
        notes = [] if tokenizer_files.splits_special_tokens(tokenizer) else [MARKS]
        if lm.family == "qwen2" and not tokenizer_files.splits_like_qwen(files):
            console.print(QWEN2, soft_wrap=True)
            notes.append(QWEN2)
        generation = generation or tokenizer_files.generation_config(tokenizer)
    except (ValueError, OSError, ImportError) as error:
        if given is not None or bos_token is not None:
            raise
        console.print(f"without a tokenizer: {error}; --tokenizer FILE gives one", soft_wrap=True)
    if generation:
        pad = ids.get("pad_token_id")
        pads = {"pad_token_id": ids.get("bos_token_id") if pad is None else pad}  # as in `hf.save`
        content = json.dumps({**dict.fromkeys(IDS), **ids, **pads, **generation}, indent=2)
        files = {**files, GENERATION: f"{content}\n".encode()}
    return ids, files, "\n\n".join(notes) or None


def _said(folder: epath.Path) -> _Said:
    """Raises ValueError where config.json describes a tokenizer in no known way."""
    file = folder / "config.json"
    said = read_json(file).get("tokenizer") or {}
    own, generation = (
        (said.get(name, {}) if isinstance(said, dict) else None) for name in ("ids", "generation")
    )
    if not isinstance(own, dict) or not isinstance(generation, dict):
        raise ValueError(
            f"{file} describes no tokenizer: delete {folder}, and a run makes it again"
        )
    for ids in (own, generation):
        hf_config_fields.ids({name: ids[name] for name in IDS if name in ids}, file)
    return _Said(said, {name: own[name] for name in IDS if name in own}, generation)


def _tokenizer(
    folder: epath.Path,
    lm: Transformer,
    about: _Said,
    given: str | None,
    bos_token: str | None,
) -> Tokenizer:
    """The tokenizer given, or what config.json says of one.

    Raises ValueError where there is none, where it is not the one that config.json describes, and
    where the model lacks its ids; and what the tokenizer raises for its file.
    """
    said = about.tokenizer
    if given is not None:
        own = said.get("bos_token") if given.endswith(".json") else None
        tokenizer = load_tokenizer(given, bos_token or own)
    elif bos_token is not None:
        raise ValueError(f"bos_token={bos_token} of which file? give --tokenizer FILE")
    elif "type" not in said:
        raise ValueError(f"{folder / 'config.json'} names none")
    else:
        tokenizer = tokenizer_files.from_description(said)
    name = given or said.get("path") or said["type"]
    if tokenizer.fingerprint != said.get("fingerprint", tokenizer.fingerprint):
        trained = said.get("path") or said["type"]
        raise ValueError(f"{name} is not what {folder} was trained with, which is {trained}")
    opens = about.ids.get("bos_token_id", tokenizer.bos_id)
    if tokenizer.bos_id != opens:
        raise ValueError(f"{name} opens a document with {tokenizer.bos_id}, {folder} with {opens}")
    if tokenizer.vocab_size > lm.vocabulary:
        raise ValueError(
            f"{name} makes {tokenizer.vocab_size} ids, the model of {folder} knows "
            f"{lm.vocabulary}: it is another model's tokenizer"
        )
    return tokenizer

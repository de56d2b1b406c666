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
ERRORS = (ValueError, OSError, ImportError)  # of a tokenizer's files and libraries
SPECIAL_NAMES = (
    "Names of special tokens in a text are these tokens, as in the tokenizer of the base: "
    "conversations need it. In training they were text, but in question-answer pairs with a chat "
    "template: `split_special_tokens=True` gives that."
)
QWEN2 = (
    "AutoTokenizer of transformers 5 splits a text for a qwen2 model as Qwen does, which this "
    "tokenizer does not: load it with PreTrainedTokenizerFast, which gives the ids of training."
)


class _Stated(NamedTuple):
    """What config.json of an artifact states of its tokenizer; empty dicts without a statement."""

    tokenizer: Mapping[str, Any]
    ids: dict[str, Any]  # `IDS`
    generation: dict[str, Any]  # generation_config.json of the base


class ExportedTokenizer(NamedTuple):
    """What an exported folder has of a tokenizer."""

    ids: Mapping[str, Any]  # of special tokens
    files: Mapping[str, bytes]
    note: str | None  # for the model's card


def load(
    folder: epath.Path, lm: Transformer, file: str | None = None, bos_token: str | None = None
) -> tuple[Tokenizer, list[int]]:
    """Returns the tokenizer of an artifact's model, and the tokens that end a document.

    `file` replaces the path that config.json states. Raises ValueError for a tokenizer of another
    model and where there is none, and what the tokenizer raises for its file.
    """
    stated = _read(folder)
    try:
        tokenizer = _open(folder, lm, stated, file, bos_token)
    except ERRORS as error:
        if file is not None or bos_token is not None:
            raise
        raise ValueError(f"without a tokenizer: {error}; --tokenizer FILE gives one") from error
    ids = stated.ids or tokenizer_files.special_ids(tokenizer)
    ends = listed(ids.get("eos_token_id")) + listed(stated.generation.get("eos_token_id"))
    return tokenizer, [*dict.fromkeys(ends)] or [tokenizer.bos_id]


def describe_imported(
    folder: epath.Path, lm: Transformer, bos_token: str | None, without: bool
) -> tuple[dict[str, Any], int]:
    """Returns what config.json will state of a Hugging Face folder's tokenizer, and its size.

    The statement has at least the ids of special tokens. The size is the number of ids that the
    tokenizer makes, or the model's if there is no tokenizer. Raises ValueError for a tokenizer that
    cannot be used, unless the import goes `without` it, and for ids outside the model's table.
    """
    ids = hf_special.read_ids(folder, lm.vocabulary)
    files = [folder / name for name in FILES if (folder / name).is_file()]
    if without and bos_token is not None:
        raise ValueError(f"bos_token={bos_token} of no tokenizer: drop --without-tokenizer")
    if without or not (files or (folder / hf_special.SETTINGS).is_file()):
        return {"ids": ids, "generation": hf_special.read(folder).generation}, lm.vocabulary
    try:
        tokenizer = _open_imported(folder, lm, files, ids["bos_token_id"], bos_token)
    except ERRORS as error:
        raise ValueError(f"{error}; --without-tokenizer imports the weights alone") from error
    ids["bos_token_id"] = tokenizer.bos_id
    generation = hf_special.read(folder).generation
    stated = {**tokenizer_files.describe(tokenizer), "ids": ids, "generation": generation}
    return stated, tokenizer.vocab_size


def _open_imported(
    folder: epath.Path,
    lm: Transformer,
    files: list[epath.Path],
    bos_id: int | None,
    bos_token: str | None,
) -> Tokenizer:
    """Returns the tokenizer in a Hugging Face folder, whose config.json states `bos_id`.

    Raises ValueError for one that is not this model's.
    """
    if not files:
        raise FileNotFoundError(f"no {' or '.join(FILES)} in {folder}: download it")
    file, bos = files[0], bos_token
    if bos is None and file.suffix == ".json":
        bos = hf_special.read_bos(folder)
    tokenizer = load_tokenizer(file, bos)
    if bos_token is None and bos_id is not None and tokenizer.bos_id != bos_id:
        raise ValueError(
            f"{file} opens a document with {tokenizer.bos_id}, {folder / hf_folder.CONFIG} says "
            f"bos_token_id={bos_id}: --bos-token TOKEN says which"
        )
    if tokenizer.vocab_size > lm.vocabulary:
        raise ValueError(
            f"{file} makes {tokenizer.vocab_size} ids, the model's tables have {lm.vocabulary} "
            "rows: download the folder again"
        )
    return tokenizer


def export(
    folder: epath.Path, lm: Transformer, file: str | None, bos_token: str | None
) -> ExportedTokenizer:
    """Returns the files of an artifact's tokenizer for Hugging Face transformers.

    Prints why where there is no tokenizer, and where AutoTokenizer would read it as another one.
    Raises what `load` does for a `file` or `bos_token`.
    """
    stated = _read(folder)
    ids, generation = stated.ids, stated.generation
    files: dict[str, bytes] = {}
    notes = []
    try:
        tokenizer = _open(folder, lm, stated, file, bos_token)
        ids, files = (
            ids or tokenizer_files.special_ids(tokenizer),
            tokenizer_files.export_files(tokenizer),
        )
        if not tokenizer_files.splits_special_tokens(tokenizer):
            notes.append(SPECIAL_NAMES)
        if lm.family == "qwen2" and not tokenizer_files.splits_like_qwen(files):
            console.print(QWEN2, soft_wrap=True)
            notes.append(QWEN2)
        generation = generation or tokenizer_files.generation_config(tokenizer)
    except ERRORS as error:
        if file is not None or bos_token is not None:
            raise
        console.print(f"without a tokenizer: {error}; --tokenizer FILE gives one", soft_wrap=True)
    if generation:
        pad = ids.get("pad_token_id")
        pads = {"pad_token_id": ids.get("bos_token_id") if pad is None else pad}  # as in `hf.save`
        content = json.dumps({**dict.fromkeys(IDS), **ids, **pads, **generation}, indent=2)
        files = {**files, GENERATION: f"{content}\n".encode()}
    return ExportedTokenizer(ids, files, "\n\n".join(notes) or None)


def _read(folder: epath.Path) -> _Stated:
    """Raises ValueError where config.json describes a tokenizer in no known way."""
    file = folder / "config.json"
    tokenizer = read_json(file).get("tokenizer") or {}
    ids, generation = (
        tokenizer.get(name, {}) if isinstance(tokenizer, dict) else None
        for name in ("ids", "generation")
    )
    if not isinstance(ids, dict) or not isinstance(generation, dict):
        raise ValueError(
            f"{file} describes no tokenizer: delete {folder}, and a run makes it again"
        )
    for values in (ids, generation):
        hf_config_fields.check_ids({name: values[name] for name in IDS if name in values}, file)
    return _Stated(tokenizer, {name: ids[name] for name in IDS if name in ids}, generation)


def _open(
    folder: epath.Path,
    lm: Transformer,
    stated: _Stated,
    file: str | None,
    bos_token: str | None,
) -> Tokenizer:
    """Returns the tokenizer in `file`, or without one that of config.json.

    Raises ValueError where there is none, where it is not the one that config.json describes, and
    where the model lacks its ids; and what the tokenizer raises for its file.
    """
    config = stated.tokenizer
    if file is not None:
        stated_bos = config.get("bos_token") if file.endswith(".json") else None
        tokenizer = load_tokenizer(file, bos_token or stated_bos)
    elif bos_token is not None:
        raise ValueError(f"bos_token={bos_token} of which file? give --tokenizer FILE")
    elif "type" not in config:
        raise ValueError(f"{folder / 'config.json'} names none")
    else:
        tokenizer = tokenizer_files.from_description(config)
    name = file or config.get("path") or config["type"]
    if tokenizer.fingerprint != config.get("fingerprint", tokenizer.fingerprint):
        trained = config.get("path") or config["type"]
        raise ValueError(f"{name} is not what {folder} was trained with, which is {trained}")
    bos_id = stated.ids.get("bos_token_id", tokenizer.bos_id)
    if tokenizer.bos_id != bos_id:
        raise ValueError(f"{name} opens a document with {tokenizer.bos_id}, {folder} with {bos_id}")
    if tokenizer.vocab_size > lm.vocabulary:
        raise ValueError(
            f"{name} makes {tokenizer.vocab_size} ids, the model of {folder} knows "
            f"{lm.vocabulary}: it is another model's tokenizer"
        )
    return tokenizer

"""Tokenizers as an artifact's config.json names them, and as Hugging Face stores them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from undo_jax.data.tokenizers import WORD, Bytes, Characters, Tokenizer, Words
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece, TokenizerFile
from undo_jax.models import hf_special
from undo_jax.models.hf_special import IDS, SETTINGS, text_of
from undo_jax.runtime.atomic_files import absolute_path

BOS = "<bos>"  # for tokenizers whose tokens have no names
TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
COPIED_SETTINGS = (  # of a base's tokenizer_config.json: they do not change a text's ids
    "chat_template", "model_max_length", "padding_side", "truncation_side", "unk_token",
    "additional_special_tokens", "extra_special_tokens", "split_special_tokens",
)  # fmt: skip
KINDS = {kind.__name__: kind for kind in (Bytes, Characters, Words, SentencePiece, HuggingFace)}


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a tokenizer as JSON for config.json, see `from_description`, with special ids."""
    name = type(tokenizer).__name__
    fields = dataclasses.fields(KINDS[name]) if type(tokenizer) in KINDS.values() else ()
    content = {"type": name, **{field.name: getattr(tokenizer, field.name) for field in fields}}
    if "path" in content:
        content["path"] = os.fspath(absolute_path(epath.Path(content["path"])))
    content |= {"fingerprint": tokenizer.fingerprint, "ids": special_ids(tokenizer)}
    generation = generation_config(tokenizer)
    return {**content, "generation": generation} if generation else content


def from_description(content: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that config.json names.

    Raises ValueError for a tokenizer class of the experiment's own and for invalid fields, and
    what the tokenizer raises for its file. The file may have changed: compare fingerprints.
    """
    kind = KINDS.get(str(content["type"]))
    if kind is None:
        raise _custom_error(content["type"])
    values: dict[str, Any] = {f.name: content.get(f.name) for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} makes no {kind.__name__}")
    return kind(**values)


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns bos_token_id, eos_token_id and pad_token_id, as Hugging Face's configurations do.

    A document ends where the next one opens, so BOS is an end-of-text id, after those that the
    tokenizer's folder states, or the EOS of a usual name, if it has one.
    """
    special, settings = _special_tokens(tokenizer), _hf_settings(tokenizer)
    bos, eos, pad = (special.get(kind, (None, None))[1] for kind in ("bos", "eos", "pad"))
    named, padding = (_id_of_setting(tokenizer, f"{kind}_token") for kind in ("eos", "pad"))
    stated = [i for i in hf_special.ends(settings) if _name_of(tokenizer, i) is not None]
    ends = stated or [i for i in (named, eos) if i is not None][:1]
    pads = settings.ids.get(IDS[2]), settings.generation.get(IDS[2]), padding
    pad = next((i for i in pads if i is not None and _name_of(tokenizer, i) is not None), pad)
    ends = [*dict.fromkeys([*ends, bos])]
    return dict(zip(IDS, (bos, ends[0] if len(ends) == 1 else ends, pad), strict=True))


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns generation_config.json of the tokenizer's folder without ids; empty without one."""
    generation = _hf_settings(tokenizer).generation
    return {name: value for name, value in generation.items() if name not in IDS}


def splits_special_tokens(tokenizer: Tokenizer) -> bool:
    """Returns whether the exported tokenizer takes names of special tokens in a text for text.

    In training they always are, but in conversations. The tokenizer of a Hugging Face folder does
    what it does there, where conversations need them to be tokens.
    """
    settings = _hf_settings(tokenizer).settings
    if isinstance(tokenizer, SentencePiece) or not settings:
        return True
    return settings.get("split_special_tokens") is True


def export_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Returns files from which transformers makes a tokenizer that encodes as in training.

    It puts BOS first. Of the tokenizer's Hugging Face folder come the chat templates and
    `COPIED_SETTINGS`; see `splits_special_tokens` for texts with names of special tokens.
    For SentencePiece unigram models, transformers reads the names of control pieces in a text as
    these pieces, and may split runs of one character otherwise: its sums have another precision.
    Raises ValueError for a tokenizer that transformers would read as another one.
    """
    if type(tokenizer) not in KINDS.values():
        raise _custom_error(type(tokenizer).__name__)
    if isinstance(tokenizer, SentencePiece):
        if not tokenizer.keeps_spaces:
            raise ValueError(
                f"{tokenizer.path} adds or drops spaces, transformers would not: encode with "
                "sentencepiece"
            )
        files = {SentencePiece.hf_name: tokenizer.content}
    elif isinstance(tokenizer, HuggingFace):
        files = {HuggingFace.hf_name: _opening_with_bos(tokenizer.content, tokenizer)}
    else:
        content = _json_bytes(_tokenizer_json(tokenizer))
        files = {HuggingFace.hf_name: _opening_with_bos(content, tokenizer)}
    copied, templates = _hf_settings(tokenizer).settings, {}
    if isinstance(tokenizer, TokenizerFile) and tokenizer.hf_settings is not None:
        folder = epath.Path(tokenizer.path).parent
        paths = (file for pattern in TEMPLATES for file in folder.glob(pattern))
        templates = {str(file.relative_to(folder)): file.read_bytes() for file in paths}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        **_special_names(tokenizer),
        "clean_up_tokenization_spaces": False,
        **{name: copied[name] for name in COPIED_SETTINGS if name in copied},
        "split_special_tokens": splits_special_tokens(tokenizer),
    }
    return {**files, SETTINGS: _json_bytes(settings), **templates}


def splits_like_qwen(files: Mapping[str, bytes]) -> bool:
    """Returns whether exported files split a text as Qwen's: in NFC, by one pattern, into bytes.

    Of a folder of model type qwen2 AutoTokenizer takes vocabulary and merges, and splits so
    (transformers 5.23, models/auto/tokenization_auto.py).
    """
    content = json.loads(files.get(HuggingFace.hf_name, b"{}"))
    normalizer, splitter = (content.get(name) or {} for name in ("normalizer", "pre_tokenizer"))
    steps = [step["type"] for step in splitter.get("pretokenizers", ())]
    return normalizer.get("type") == "NFC" and steps == ["Split", "ByteLevel"]


def _custom_error(name: str) -> ValueError:
    return ValueError(f"{name} is a tokenizer of the experiment's own")


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns bos_token, eos_token and pad_token, which are those of `special_ids`.

    EOS is the one of a Hugging Face folder if it is among them, or else the first.
    """
    bos, ids = _special_tokens(tokenizer)["bos"][0], special_ids(tokenizer)
    ends, named = hf_special.listed(ids[IDS[1]]), _id_of_setting(tokenizer, "eos_token")
    eos = _name_of(tokenizer, named if named is not None and named in ends else ends[0])
    pad = bos if ids[IDS[2]] is None else _name_of(tokenizer, ids[IDS[2]])
    return {"bos_token": bos, "eos_token": str(eos), "pad_token": str(pad)}


def _name_of(tokenizer: Tokenizer, number: int) -> str | None:
    """Returns the token of an id; None for one that it lacks."""
    if isinstance(tokenizer, TokenizerFile):
        return tokenizer.name_of(number)
    return {i: name for name, i in _special_tokens(tokenizer).values()}.get(number)


def _id_of_setting(tokenizer: Tokenizer, name: str) -> int | None:
    """Returns the id of a token that tokenizer_config.json names; None without such a token."""
    token = text_of(_hf_settings(tokenizer).settings.get(name))
    return (
        tokenizer.id_of(token)
        if token is not None and isinstance(tokenizer, TokenizerFile)
        else None
    )


def _hf_settings(tokenizer: Tokenizer) -> hf_special.Special:
    """Returns what the JSON files beside the tokenizer's file state; nothing without them."""
    settings = tokenizer.hf_settings if isinstance(tokenizer, TokenizerFile) else None
    return settings or hf_special.Special({}, {}, {})


def _special_tokens(tokenizer: Tokenizer) -> dict[str, tuple[str, int]]:
    """Returns names and ids of bos, and of eos and pad if it has them."""
    return getattr(tokenizer, "special", {"bos": (BOS, tokenizer.bos_id)})


def _opening_with_bos(file: bytes, tokenizer: Tokenizer) -> bytes:
    """Returns a tokenizer.json that prepends BOS and neither truncates nor pads.

    It is unchanged if it does. transformers follows this file and ignores add_bos_token of
    tokenizer_config.json.
    """
    content, (name, number) = json.loads(file), _special_tokens(tokenizer)["bos"]
    first, second = (
        [{"SpecialToken": {"id": name, "type_id": i}}, {"Sequence": {"id": text, "type_id": i}}]
        for i, text in enumerate("AB")
    )
    processor = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
    changed = {**content, "truncation": None, "padding": None, "post_processor": processor}
    return file if changed == content else _json_bytes(changed)


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a tokenizer.json for bytes, characters or words, which have no file."""
    fuse = {"type": "Fuse"}
    if isinstance(tokenizer, Characters | Words):
        pieces = {token: i for i, token in enumerate(tokenizer.tokens, start=1)}
        model = {"type": "WordLevel", "unk_token": "<unk>"}  # not in the vocabulary: an error
        pattern = {"Regex": WORD if isinstance(tokenizer, Words) else r"[\s\S]"}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        decoder = fuse
    else:
        pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
        model = {"type": "BPE", "byte_fallback": True, "merges": []}
        split, decoder = None, {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, fuse]}
    as_text = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [{"id": tokenizer.bos_id, "content": BOS, **as_text, "special": True}],
        "normalizer": None,
        "pre_tokenizer": split,
        "decoder": decoder,
        "model": {**model, "vocab": {BOS: tokenizer.bos_id, **pieces}},
    }


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

"""Tokenizers as an artifact's config.json names them, and as Hugging Face stores them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from undo_jax.data.tokenizers import WORD, Bytes, Characters, Tokenizer, Words
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece
from undo_jax.durable import absolute

BOS = "<bos>"  # for tokenizers whose tokens have no names
OWN = "{} is a tokenizer of the experiment's own"
KINDS = {kind.__name__: kind for kind in (Bytes, Characters, Words, SentencePiece, HuggingFace)}


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as JSON for config.json, see `described`; with its special tokens' ids."""
    name = type(tokenizer).__name__
    fields = dataclasses.fields(KINDS[name]) if type(tokenizer) in KINDS.values() else ()
    content = {"type": name, **{field.name: getattr(tokenizer, field.name) for field in fields}}
    if "path" in content:
        content["path"] = os.fspath(absolute(epath.Path(content["path"])))
    return {**content, "fingerprint": tokenizer.fingerprint, "ids": ids(tokenizer)}


def described(content: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that config.json names.

    Raises ValueError for a tokenizer class of the experiment's own and for what describes none, and
    what the tokenizer raises for its file. The file may have changed: compare fingerprints.
    """
    kind = KINDS.get(str(content["type"]))
    if kind is None:
        raise ValueError(OWN.format(content["type"]))
    values: dict[str, Any] = {
        field.name: content.get(field.name) for field in dataclasses.fields(kind)
    }
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} makes no {kind.__name__}")
    return kind(**values)


def ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its bos_token_id, eos_token_id and pad_token_id, as Hugging Face's configurations name them.

    A document ends where the next one opens, so BOS is an end-of-text id, beside EOS if it has one.
    """
    special = _special(tokenizer)
    bos, eos, pad = (special.get(kind, (None, None))[1] for kind in ("bos", "eos", "pad"))
    return {
        "bos_token_id": bos,
        "eos_token_id": bos if eos in (None, bos) else [eos, bos],
        "pad_token_id": pad,
    }


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Files from which transformers makes a tokenizer that encodes as in training, BOS first.

    For SentencePiece unigram models, transformers reads the names of control pieces in a text as
    these pieces, and may split runs of one character otherwise: its sums have another precision.
    Raises ValueError for a tokenizer that transformers would read as another one.
    """
    if type(tokenizer) not in KINDS.values():
        raise ValueError(OWN.format(type(tokenizer).__name__))
    if isinstance(tokenizer, SentencePiece):
        if not tokenizer.keeps_spaces:
            raise ValueError(
                f"{tokenizer.path} adds or drops spaces, transformers would not: encode with "
                "sentencepiece"
            )
        made = {"tokenizer.model": epath.Path(tokenizer.path).read_bytes()}
    elif isinstance(tokenizer, HuggingFace):
        made = {"tokenizer.json": _opened(epath.Path(tokenizer.path).read_bytes(), tokenizer)}
    else:
        made = {"tokenizer.json": _opened(_bytes(_content(tokenizer)), tokenizer)}
    special = {kind: name for kind, (name, _) in _special(tokenizer).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": special["bos"],
        "eos_token": special.get("eos", special["bos"]),
        "pad_token": special.get("pad", special["bos"]),
        "split_special_tokens": True,  # "<bos>" in a text is text
        "clean_up_tokenization_spaces": False,
    }
    return {**made, "tokenizer_config.json": _bytes(settings)}


def _special(tokenizer: Tokenizer) -> dict[str, tuple[str, int]]:
    """Names and ids of bos, and of eos and pad if it has them."""
    return getattr(tokenizer, "special", {"bos": (BOS, tokenizer.bos_id)})


def _opened(file: bytes, tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json that prepends BOS and neither truncates nor pads; unchanged if it does.

    transformers follows this file and ignores add_bos_token of tokenizer_config.json.
    """
    content, (name, number) = json.loads(file), _special(tokenizer)["bos"]
    first, second = (
        [{"SpecialToken": {"id": name, "type_id": i}}, {"Sequence": {"id": text, "type_id": i}}]
        for i, text in enumerate("AB")
    )
    opens = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
    wanted = {**content, "truncation": None, "padding": None, "post_processor": opens}
    return file if wanted == content else _bytes(wanted)


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer.json for bytes, characters or words, which have no file."""
    fuse = {"type": "Fuse"}
    if isinstance(tokenizer, Characters | Words):
        by_words = isinstance(tokenizer, Words)
        tokens = tokenizer.words.split("\t") if by_words else tokenizer.alphabet
        pieces = {token: i for i, token in enumerate(tokens, start=1)}
        model = {"type": "WordLevel", "unk_token": "<unk>"}  # not in the vocabulary: an error
        split = {"Regex": WORD if by_words else r"[\s\S]"}
        each = {"pattern": split, "behavior": "Isolated", "invert": False}
        split, decoder = {"type": "Split", **each}, fuse
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


def _bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

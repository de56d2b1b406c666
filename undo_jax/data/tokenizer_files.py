"""Tokenizers as an artifact's config.json names them, and as Hugging Face stores them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from undo_jax.data.tokenizers import Bytes, Characters, Tokenizer
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece
from undo_jax.durable import absolute

BOS = "<bos>"  # where tokens have no names
OWN = "{} is a tokenizer of the experiment's own"
KINDS = {kind.__name__: kind for kind in (Bytes, Characters, SentencePiece, HuggingFace)}


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer in config.json: what `described` makes it from, and its special tokens' ids."""
    name = type(tokenizer).__name__
    fields = dataclasses.fields(KINDS[name]) if type(tokenizer) in KINDS.values() else ()
    content = {"type": name, **{field.name: getattr(tokenizer, field.name) for field in fields}}
    if "path" in content:
        content["path"] = os.fspath(absolute(epath.Path(content["path"])))
    return {**content, "fingerprint": tokenizer.fingerprint, "ids": ids(tokenizer)}


def described(content: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that config.json names.

    Raises ValueError for one of the experiment's own and for what describes none, and what the
    tokenizer raises for its file, which may have changed: its fingerprint tells.
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
    """What Hugging Face's configurations call bos_token_id, eos_token_id and pad_token_id.

    A document ends where the next one opens, so BOS ends a text too, beside the EOS there may be.
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

    Of SentencePiece's unigram models it takes the names of control pieces in a text for these, and
    may cut runs of one character in another order: its sums are of another precision. Raises
    ValueError for a tokenizer that transformers would read as another one.
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
    """Names and ids of bos and of what else it has of eos and pad."""
    return getattr(tokenizer, "special", {"bos": (BOS, tokenizer.bos_id)})


def _opened(file: bytes, tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json that puts BOS before a text, cuts none and fills none; as it is if it does.

    transformers does what the file says, whatever tokenizer_config.json says of add_bos_token.
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
    """A tokenizer.json for bytes or characters, which have no file."""
    fuse = {"type": "Fuse"}
    if isinstance(tokenizer, Characters):
        pieces = {character: i for i, character in enumerate(tokenizer.alphabet, start=1)}
        model = {"type": "WordLevel", "unk_token": "<unk>"}  # there is none: it refuses
        each = {"pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
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

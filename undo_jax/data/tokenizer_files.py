"""Tokenizers as an artifact's config.json names them, and as Hugging Face stores them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from undo_jax.data.tokenizers import WORD, Bytes, Characters, Tokenizer, Words
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece
from undo_jax.models import hf_special
from undo_jax.models.hf_special import IDS, SETTINGS, text_of
from undo_jax.runtime.atomic_files import absolute_path

BOS = "<bos>"  # for tokenizers whose tokens have no names
OWN = "{} is a tokenizer of the experiment's own"
TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
KEPT = (  # of a base's tokenizer_config.json: what does not change a text's ids
    "chat_template", "model_max_length", "padding_side", "truncation_side", "unk_token",
    "additional_special_tokens", "extra_special_tokens", "split_special_tokens",
)  # fmt: skip
FROM_FILE = SentencePiece, HuggingFace
KINDS = {kind.__name__: kind for kind in (Bytes, Characters, Words, *FROM_FILE)}


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as JSON for config.json, see `described`; with its special tokens' ids."""
    name = type(tokenizer).__name__
    fields = dataclasses.fields(KINDS[name]) if type(tokenizer) in KINDS.values() else ()
    content = {"type": name, **{field.name: getattr(tokenizer, field.name) for field in fields}}
    if "path" in content:
        content["path"] = os.fspath(absolute_path(epath.Path(content["path"])))
    said = generation(tokenizer)
    more = {"generation": said} if said else {}
    return {**content, "fingerprint": tokenizer.fingerprint, "ids": ids(tokenizer), **more}


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

    A document ends where the next one opens, so BOS is an end-of-text id, after those that the
    tokenizer's folder states, or the EOS of a usual name, if it has one.
    """
    special = _special(tokenizer)
    bos, eos, pad = (special.get(kind, (None, None))[1] for kind in ("bos", "eos", "pad"))
    ends = [] if eos is None else [eos]
    if isinstance(tokenizer, FROM_FILE) and (said := tokenizer.beside) is not None:
        known = [i for i in hf_special.ends(said) if tokenizer.name_of(i) is not None]
        named, padding = (_named(tokenizer, said, f"{kind}_token") for kind in ("eos", "pad"))
        ends = known or ([] if named is None else [named]) or ends
        pads = said.ids.get(IDS[2]), said.generation.get(IDS[2]), padding
        pad = next((i for i in pads if i is not None and tokenizer.name_of(i) is not None), pad)
    ends = [*dict.fromkeys([*ends, bos])]
    return dict(zip(IDS, (bos, ends[0] if len(ends) == 1 else ends, pad), strict=True))


def generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json of the tokenizer's folder, but for the ids; empty without one."""
    said = _beside(tokenizer)
    return {} if said is None else {n: v for n, v in said.generation.items() if n not in IDS}


def splits(tokenizer: Tokenizer) -> bool:
    """Whether the exported tokenizer takes names of special tokens in a text for text.

    In training they always are, but in conversations. The tokenizer of a Hugging Face folder does
    what it does there, where conversations need them to be tokens.
    """
    said = _beside(tokenizer)
    if isinstance(tokenizer, SentencePiece) or said is None or not said.settings:
        return True
    return said.settings.get("split_special_tokens") is True


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Files from which transformers makes a tokenizer that encodes as in training, BOS first.

    Of the tokenizer's Hugging Face folder come the chat templates and what `KEPT` names; see
    `splits` for texts with names of special tokens.
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
    own, templates = {}, {}
    if isinstance(tokenizer, FROM_FILE) and (said := tokenizer.beside) is not None:
        own, folder = said.settings, epath.Path(tokenizer.path).parent
        found = (file for pattern in TEMPLATES for file in folder.glob(pattern))
        templates = {str(file.relative_to(folder)): file.read_bytes() for file in found}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        **_names(tokenizer),
        "clean_up_tokenization_spaces": False,
        **{name: own[name] for name in KEPT if name in own},
        "split_special_tokens": splits(tokenizer),
    }
    return {**made, SETTINGS: _bytes(settings), **templates}


def is_qwens(made: Mapping[str, bytes]) -> bool:
    """Whether `files` splits a text as Qwen's does: in NFC, by one pattern, into bytes.

    Of a folder of model type qwen2 AutoTokenizer takes vocabulary and merges, and splits so
    (transformers 5.23, models/auto/tokenization_auto.py).
    """
    content = json.loads(made.get("tokenizer.json", b"{}"))
    normalizer, splitter = (content.get(name) or {} for name in ("normalizer", "pre_tokenizer"))
    steps = [step["type"] for step in splitter.get("pretokenizers", ())]
    return normalizer.get("type") == "NFC" and steps == ["Split", "ByteLevel"]


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """bos_token, eos_token and pad_token, which are those of `ids`.

    EOS is the one of a Hugging Face folder if it is among them, or else the first.
    """
    special, found = _special(tokenizer), ids(tokenizer)
    bos = special["bos"][0]
    eos, pad = (special.get(kind, special["bos"])[0] for kind in ("eos", "pad"))
    if isinstance(tokenizer, FROM_FILE) and (said := tokenizer.beside) is not None:
        listed, own = hf_special.listed(found[IDS[1]]), _named(tokenizer, said, "eos_token")
        eos = tokenizer.name_of(own if own is not None and own in listed else listed[0])
        pad = bos if found[IDS[2]] is None else tokenizer.name_of(found[IDS[2]])
    return {"bos_token": bos, "eos_token": str(eos), "pad_token": str(pad)}


def _named(
    tokenizer: SentencePiece | HuggingFace, said: hf_special.Special, which: str
) -> int | None:
    """The id of a token that tokenizer_config.json names; None if it names none, or it is not."""
    name = text_of(said.settings.get(which))
    return None if name is None else tokenizer.id_of(name)


def _beside(tokenizer: Any) -> hf_special.Special | None:
    return getattr(tokenizer, "beside", None)


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

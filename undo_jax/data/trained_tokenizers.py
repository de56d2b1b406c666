"""Tokenizers that are read from a file: SentencePiece models, and Hugging Face's JSON."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from etils import epath

from undo_jax.data.files import missing, reading
from undo_jax.models import hf_special
from undo_jax.models.hf_special import ENDS, Special

PADS = ("<pad>", "[PAD]")


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model file. Control pieces such as BOS decode to nothing."""

    path: str | Path  # of its file, *.model

    def __post_init__(self) -> None:
        """Load at once, so that a bad file fails here.

        Without the file, whatever needs it raises FileNotFoundError: `undo-jax fit` needs no data.
        Raises ModuleNotFoundError without the library and ValueError when the file is no model or
        its model has no BOS piece.
        """
        if _there(self.path) and self._processor.bos_id() < 0:
            raise ValueError(f"{self.path} has no BOS piece; train the model with a bos_id >= 0")

    @cached_property
    def _content(self) -> bytes:
        return _read(self.path)

    @cached_property
    def _processor(self) -> Any:
        content = self._content
        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise missing("sentencepiece") from None
        try:
            if not content:
                raise RuntimeError("the library takes an empty file for none given")
            return sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError):
            raise ValueError(
                f"{self.path} is not a SentencePiece model; give a trained .model file"
            ) from None

    @property
    def fingerprint(self) -> str:
        """Hash of the model file."""
        return content_hash(self._content)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.get_piece_size()

    @property
    def bos_id(self) -> int:
        """Id of the BOS piece."""
        return self._processor.bos_id()

    @property
    def special(self) -> dict[str, tuple[str, int]]:
        """Pieces and ids of bos, and of eos and pad if it has them."""
        model = self._processor
        ids = {"bos": model.bos_id(), "eos": model.eos_id(), "pad": model.pad_id()}
        return {name: (model.id_to_piece(i), i) for name, i in ids.items() if i >= 0}

    @cached_property
    def beside(self) -> Special | None:
        """What the Hugging Face folder says whose tokenizer.model this is, if it is one's."""
        return _beside(self.path, "tokenizer.model")

    def id_of(self, token: str) -> int | None:
        """Id of a piece; None for one that it lacks."""
        found = self._processor.piece_to_id(token)
        return found if self._processor.id_to_piece(found) == token else None

    def name_of(self, number: int) -> str | None:
        """The piece of an id; None for one that it lacks."""
        return self._processor.id_to_piece(number) if number < self.vocab_size else None

    @property
    def keeps_spaces(self) -> bool:
        """Whether it neither adds spaces to a text nor drops any."""
        return "".join(self._processor.encode("  a b ", out_type=str)) == "▁▁a▁b▁"

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        return self._processor.encode(text, add_bos=False, add_eos=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids."""
        return self._processor.decode([int(i) for i in ids])


@dataclass(frozen=True)
class HuggingFace:
    """A Hugging Face `tokenizers` JSON file. Special tokens decode to nothing.

    Truncation and padding set in the file are switched off.
    """

    path: str | Path  # of its file, tokenizer.json
    bos_token: str = "<bos>"  # what begins a document

    def __post_init__(self) -> None:
        """Load at once, so that a bad file fails here.

        Without the file, whatever needs it raises FileNotFoundError: `undo-jax fit` needs no data.
        Raises ModuleNotFoundError without the library and ValueError when the file is no tokenizer
        or has no `bos_token`.
        """
        if _there(self.path) and self._tokenizer.token_to_id(self.bos_token) is None:
            raise ValueError(
                f"{self.path} has no token {self.bos_token!r}: name its BOS token with bos_token, "
                "on the command line --bos-token"
            )

    @cached_property
    def _content(self) -> bytes:
        return _read(self.path)

    @property
    def fingerprint(self) -> str:
        """Hash of the file and the BOS token."""
        return content_hash(self.bos_token.encode() + b"\0" + self._content)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self._read_as_it_is()
        tokenizer.encode_special_tokens = True  # "<bos>" in a text is text
        return tokenizer

    @cached_property
    def _marking(self) -> Any:
        return self._read_as_it_is()

    def _read_as_it_is(self) -> Any:
        content = self._content
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise missing("tokenizers") from None
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception:  # The library raises plain Exception for a file that does not parse.
            raise ValueError(
                f"{self.path} is not a tokenizers file; give a tokenizer.json"
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Largest token id plus one, added tokens included."""
        return self._vocab_size

    @cached_property
    def _vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_id(self) -> int:
        """Id of `bos_token`."""
        return self._tokenizer.token_to_id(self.bos_token)

    @cached_property
    def beside(self) -> Special | None:
        """What the Hugging Face folder says whose tokenizer.json this is, if it is one's."""
        return _beside(self.path, "tokenizer.json")

    def id_of(self, token: str) -> int | None:
        """Id of a token; None for one that it lacks."""
        return self._tokenizer.token_to_id(token)

    def name_of(self, number: int) -> str | None:
        """The token of an id; None for one that it lacks."""
        return self._tokenizer.id_to_token(number) if number < 2**32 else None

    @property
    def special(self) -> dict[str, tuple[str, int]]:
        """Names and ids of bos and, by their usual names, of eos and pad."""
        number, names = (
            self._tokenizer.token_to_id,
            {"bos": (self.bos_token,), "eos": ENDS, "pad": PADS},
        )
        known = {kind: [n for n in usual if number(n) is not None] for kind, usual in names.items()}
        return {kind: (found[0], number(found[0])) for kind, found in known.items() if found}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def marks(self) -> frozenset[str]:
        """Names of all special tokens."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of `text`, in which the names of special tokens are these tokens."""
        return self._marking.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def _beside(path: str | Path, name: str) -> Special | None:
    """Of another file than `name` nothing is known. Raises ValueError for damaged JSON."""
    file = epath.Path(path)
    with reading(str(path)):
        return hf_special.read(file.parent) if file.name == name else None


def _there(path: str | Path) -> bool:
    file = epath.Path(path)
    with reading(str(path)):
        return file.exists() and not file.is_dir()


def _read(path: str | Path) -> bytes:
    if _there(path):
        with reading(str(path)):
            return epath.Path(path).read_bytes()
    folder = epath.Path(path).parent
    other = ", or make the data first, as the experiment's file says"
    if epath.Path(path).name == "tokenizer.json" and not folder.exists():  # of a model
        other = f", or hf download ORGANISATION/{folder.name} --local-dir {folder}"
    raise FileNotFoundError(f"no tokenizer file at {path}; check the path{other}")


def content_hash(content: bytes) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]

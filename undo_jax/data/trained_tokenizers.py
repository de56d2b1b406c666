"""Tokenizers that are read from a file: SentencePiece models, and Hugging Face's JSON."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from etils import epath

from undo_jax.data.files import content_hash, import_optional, reading
from undo_jax.models import hf_special
from undo_jax.models.hf_special import ENDS, Special

PADS = ("<pad>", "[PAD]")


class TokenizerFile:
    """Base of tokenizers that are read from a file.

    It is read at once, so that a bad file fails early. Without the file, whatever needs it raises
    FileNotFoundError: `undo-jax fit` needs no data.
    """

    path: str | Path
    hf_name: ClassVar[str]  # of such a file in a Hugging Face folder

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token; None for one that it lacks."""
        raise NotImplementedError

    def name_of(self, number: int) -> str | None:
        """Returns the token of an id; None for one that it lacks."""
        raise NotImplementedError

    @property
    def exists(self) -> bool:
        """Whether the file exists."""
        file = epath.Path(self.path)
        with reading(str(self.path)):
            return file.exists() and not file.is_dir()

    @cached_property
    def content(self) -> bytes:
        """Its bytes. Raises FileNotFoundError where there is no file."""
        file = epath.Path(self.path)
        if self.exists:
            with reading(str(self.path)):
                return file.read_bytes()
        remedy = "make the data first, as the experiment's file says"
        if file.name == HuggingFace.hf_name and not file.parent.exists():  # of a model
            remedy = f"hf download ORGANISATION/{file.parent.name} --local-dir {file.parent}"
        raise FileNotFoundError(f"no tokenizer file at {self.path}: check the path, or {remedy}")

    @cached_property
    def hf_settings(self) -> Special | None:
        """What the JSON files beside it state, if it has the name of one in a Hugging Face folder.

        Raises ValueError for damaged JSON.
        """
        file = epath.Path(self.path)
        with reading(str(self.path)):
            return hf_special.read(file.parent) if file.name == self.hf_name else None


@dataclass(frozen=True)
class SentencePiece(TokenizerFile):
    """A SentencePiece model file. Control pieces such as BOS decode to nothing.

    Raises:
        ModuleNotFoundError: Without the library.
        ValueError: For a file that is no model, or a model without a BOS piece.
    """

    path: str | Path  # of its file, *.model

    hf_name = "tokenizer.model"

    def __post_init__(self) -> None:
        """Loads the file if it exists."""
        if self.exists and self._processor.bos_id() < 0:
            raise ValueError(f"{self.path} has no BOS piece: train the model with a bos_id >= 0")

    @cached_property
    def _processor(self) -> Any:
        content = self.content
        sentencepiece = import_optional("sentencepiece", "sentencepiece")
        try:
            if not content:
                raise RuntimeError("the library takes an empty file for none given")
            return sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError):
            raise ValueError(
                f"{self.path} is not a SentencePiece model: give a trained .model file"
            ) from None

    @property
    def fingerprint(self) -> str:
        """Hash of the model file."""
        return content_hash(self.content)

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

    def id_of(self, token: str) -> int | None:
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def name_of(self, number: int) -> str | None:
        return self._processor.id_to_piece(number) if number < self.vocab_size else None

    @property
    def keeps_spaces(self) -> bool:
        """Whether it neither adds spaces to a text nor drops any."""
        return "".join(self._processor.encode("  a b ", out_type=str)) == "▁▁a▁b▁"

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, without BOS and EOS."""
        return self._processor.encode(text, add_bos=False, add_eos=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids."""
        return self._processor.decode([int(i) for i in ids])


@dataclass(frozen=True)
class HuggingFace(TokenizerFile):
    """A Hugging Face `tokenizers` JSON file. Special tokens decode to nothing.

    Truncation and padding set in the file are switched off.

    Raises:
        ModuleNotFoundError: Without the library.
        ValueError: For a file that is no tokenizer, or one without `bos_token`.
    """

    path: str | Path  # of its file, tokenizer.json
    bos_token: str = "<bos>"  # what begins a document

    hf_name = "tokenizer.json"

    def __post_init__(self) -> None:
        """Loads the file if it exists."""
        if self.exists and self.id_of(self.bos_token) is None:
            raise ValueError(
                f"{self.path} has no token {self.bos_token!r}: name its BOS token with bos_token, "
                "on the command line --bos-token"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the file and the BOS token."""
        return content_hash(self.bos_token.encode() + b"\0" + self.content)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self._load()
        tokenizer.encode_special_tokens = True  # "<bos>" in a text is text
        return tokenizer

    @cached_property
    def _marking_tokenizer(self) -> Any:
        return self._load()

    def _load(self) -> Any:
        content = self.content
        tokenizers = import_optional("tokenizers", "tokenizers")
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception:  # The library raises plain Exception for a file that does not parse.
            raise ValueError(
                f"{self.path} is not a tokenizers file: give a tokenizer.json"
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def vocab_size(self) -> int:
        """Largest token id plus one, added tokens included."""
        return self._vocab_size

    @property
    def bos_id(self) -> int:
        """Id of `bos_token`."""
        return self._tokenizer.token_to_id(self.bos_token)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def name_of(self, number: int) -> str | None:
        return self._tokenizer.id_to_token(number) if number < 2**32 else None

    @property
    def special(self) -> dict[str, tuple[str, int]]:
        """Names and ids of bos and, by their usual names, of eos and pad."""
        special = {}
        for kind, names in (("bos", (self.bos_token,)), ("eos", ENDS), ("pad", PADS)):
            present = [name for name in names if self.id_of(name) is not None]
            if present:
                special[kind] = present[0], self._tokenizer.token_to_id(present[0])
        return special

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def marks(self) -> frozenset[str]:
        """Names of all special tokens."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def encode_marked(self, text: str) -> list[int]:
        """Returns the token ids of `text`, in which names of special tokens are these tokens."""
        return self._marking_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

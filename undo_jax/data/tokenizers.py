"""The tokenizer protocol, tokenizers of bytes, characters and words, and loading one by name."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from etils import epath

from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece, content_hash

WORD = r" ?\w+| ?[^\w\s]|\s"  # a word or a mark with the space before it; other white space


class Tokenizer(Protocol):
    """What the data code needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids; every id is below it."""
        ...

    @property
    def bos_id(self) -> int:
        """Id of the token that opens every document."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what determines its ids; the path of its file does not."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids."""
        ...


def load_tokenizer(name: epath.PathLike, bos_token: str | None = None) -> Tokenizer:
    """ "bytes", a SentencePiece `*.model` or Hugging Face `*.json` file, which may name its BOS.

    Raises ValueError for another name, for a `bos_token` with another kind of tokenizer, and what
    the tokenizer raises for its file.
    """
    if str(name).endswith(".json"):
        return HuggingFace(str(name), *([] if bos_token is None else [bos_token]))
    if bos_token is not None:
        raise ValueError(f"tokenizer {name} knows its BOS: drop bos_token={bos_token}")
    if str(name) == "bytes":
        return Bytes()
    if str(name).endswith(".model"):
        return SentencePiece(str(name))
    raise ValueError(f"unknown tokenizer {name}: give bytes, or a file *.model or *.json")


@dataclass(frozen=True)
class Bytes:
    """One token per byte of UTF-8: ids 0..255; id 256 is BOS, which decodes to nothing."""

    @property
    def vocab_size(self) -> int:
        """Always 257."""
        return 257

    @property
    def bos_id(self) -> int:
        """Always 256."""
        return 256

    @property
    def fingerprint(self) -> str:
        """The same for all."""
        return content_hash(b"bytes")

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, U+FFFD for invalid UTF-8; ValueError for an id outside 0..256."""
        ids = [_checked(int(i), self.vocab_size) for i in ids]
        return bytes(i for i in ids if i != self.bos_id).decode(errors="replace")


@dataclass(frozen=True)
class Characters:
    """One token per character: ids 1, 2, ... in the order of `alphabet`; id 0 is BOS.

    BOS decodes to a newline, which the alphabet therefore may not hold. `vocab_size` is rounded
    up to a multiple of 8; the ids above the alphabet's decode to U+FFFD.
    """

    alphabet: str  # its characters, in the order of their ids

    def __post_init__(self) -> None:
        """Raise ValueError for an alphabet that is empty, repeats or holds a newline."""
        if not self.alphabet:
            raise ValueError("alphabet is empty; give every character the texts use")
        repeated = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
        if repeated:
            raise ValueError(f"alphabet repeats {repeated[0]!r}; give every character once")
        if "\n" in self.alphabet:
            raise ValueError("alphabet holds '\\n', which stands for BOS; leave it out")

    @property
    def vocab_size(self) -> int:
        """Alphabet and BOS, rounded up to a multiple of 8."""
        return _rounded(len(self.alphabet) + 1)

    @property
    def bos_id(self) -> int:
        """Always 0."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Hash of the alphabet."""
        return content_hash(self.alphabet.encode())

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.alphabet, start=1)}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; ValueError names a character outside the alphabet."""
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            raise ValueError(
                f"character {error.args[0]!r} is not in the alphabet {self.alphabet!r}; add it or "
                "clean the text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; ValueError for an id outside 0..vocab_size-1."""
        return _joined(ids, ["\n", *self.alphabet])


@dataclass(frozen=True)
class Words:
    """One token per word or punctuation mark, with the space before it, and per other white space.

    `words` are the tokens of a closed vocabulary with tabs between them: ids 1, 2, ... in their
    order; id 0 is BOS and decodes to nothing. `vocab_size` is rounded up to a multiple of 8; the
    ids above the words' decode to U+FFFD. Raises ValueError for words that repeat or are none.
    """

    words: str  # of the vocabulary, between tabs

    def __post_init__(self) -> None:
        """Check each word."""
        listed = self._listed
        if len(self._ids) < len(listed):
            repeated = next(word for word in listed if listed.count(word) > 1)
            raise ValueError(f"words repeat {repeated!r}; give every word once")
        for word in listed:
            if re.fullmatch(WORD, word) is None:
                raise ValueError(f"words hold {word!r}, which is no single word; split it")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Words":
        """All words of the texts, sorted; ValueError for a tab, which stands between words."""
        return cls("\t".join(sorted({word for text in texts for word in re.findall(WORD, text)})))

    @property
    def vocab_size(self) -> int:
        """Words and BOS, rounded up to a multiple of 8."""
        return _rounded(len(self._ids) + 1)

    @property
    def bos_id(self) -> int:
        """Always 0."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Hash of the words."""
        return content_hash(self.words.encode())

    @cached_property
    def _listed(self) -> list[str]:
        return self.words.split("\t")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self._listed, start=1)}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; ValueError names a word that is not in the vocabulary."""
        try:
            return [self._ids[word] for word in re.findall(WORD, text)]
        except KeyError as error:
            raise ValueError(
                f"word {error.args[0]!r} is not in the vocabulary; add it or clean the text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; ValueError for an id outside 0..vocab_size-1."""
        return _joined(ids, ["", *self._listed])


def _rounded(size: int) -> int:
    """A number of ids, rounded up to a multiple of 8."""
    return -(-size // 8) * 8


def _joined(ids: Iterable[int], texts: Sequence[str]) -> str:
    """The ids' texts, U+FFFD for one that is too many; ValueError for an id outside all of them."""
    ids = [_checked(int(i), _rounded(len(texts))) for i in ids]
    return "".join(texts[i] if i < len(texts) else "\N{REPLACEMENT CHARACTER}" for i in ids)


def _checked(i: int, size: int) -> int:
    if not 0 <= i < size:
        raise ValueError(f"token id {i} is outside 0..{size - 1}; check the ids")
    return i

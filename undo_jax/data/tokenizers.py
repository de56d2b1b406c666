"""The tokenizer protocol, tokenizers of bytes, characters and words, and loading one by name."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from etils import epath

from undo_jax.data.files import content_hash
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece

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
        """Returns the token ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the token ids."""
        ...


def load_tokenizer(name: epath.PathLike, bos_token: str | None = None) -> Tokenizer:
    """Returns the tokenizer of a name.

    Args:
        name: "bytes", or a SentencePiece `*.model` or Hugging Face `*.json` file.
        bos_token: The token that opens a document, of a Hugging Face file.

    Raises:
        ValueError: For another name, and for a `bos_token` of another kind of tokenizer.
        Exception: What the tokenizer raises for its file.
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

    vocab_size = 257
    bos_id = 256
    fingerprint = content_hash(b"bytes")

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of `text`."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text, with U+FFFD for invalid UTF-8. ValueError for ids outside 0..256."""
        ids = _check_ids(ids, self.vocab_size)
        return bytes(i for i in ids if i != self.bos_id).decode(errors="replace")


class ClosedVocabulary:
    """Base of tokenizers whose tokens have the ids 1, 2, ... in their order; id 0 is BOS.

    `vocab_size` is rounded up to a multiple of 8; the ids above the tokens' decode to U+FFFD.
    """

    bos_id = 0
    bos_text: ClassVar[str]  # that BOS decodes to
    tokens: Any  # Sequence[str], a property of each class

    @property
    def vocab_size(self) -> int:
        """Tokens and BOS, rounded up to a multiple of 8."""
        return -(-(len(self.tokens) + 1) // 8) * 8

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens, start=1)}

    def _ids_of(self, kind: str, tokens: Iterable[str], vocabulary: str) -> list[int]:
        """Returns the ids of tokens. Raises ValueError, in these words, for one that has none."""
        try:
            return list(map(self._ids.__getitem__, tokens))
        except KeyError as error:
            raise ValueError(
                f"{kind} {error.args[0]!r} is not in the {vocabulary}: add it or clean the text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids. Raises ValueError for an id outside 0..vocab_size-1."""
        texts = [self.bos_text, *self.tokens]
        texts += ["\N{REPLACEMENT CHARACTER}"] * (self.vocab_size - len(texts))
        return "".join(texts[i] for i in _check_ids(ids, self.vocab_size))


@dataclass(frozen=True)
class Characters(ClosedVocabulary):
    """One token per character: ids 1, 2, ... in the order of `alphabet`; id 0 is BOS.

    BOS decodes to a newline, which the alphabet therefore may not hold. `vocab_size` is rounded
    up to a multiple of 8; the ids above the alphabet's decode to U+FFFD.

    Raises:
        ValueError: For an alphabet that is empty, repeats a character or holds a newline.
    """

    alphabet: str  # its characters, in the order of their ids

    bos_text = "\n"

    def __post_init__(self) -> None:
        if not self.alphabet:
            raise ValueError("alphabet is empty: give every character the texts use")
        _check_distinct("alphabet", self.alphabet)
        if "\n" in self.alphabet:
            raise ValueError("alphabet holds '\\n', which stands for BOS: leave it out")

    @property
    def tokens(self) -> str:
        """Its characters."""
        return self.alphabet

    @property
    def fingerprint(self) -> str:
        """Hash of the alphabet."""
        return content_hash(self.alphabet.encode())

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`. Raises ValueError for a character outside the alphabet."""
        return self._ids_of("character", text, f"alphabet {self.alphabet!r}")


@dataclass(frozen=True)
class Words(ClosedVocabulary):
    """One token per word or punctuation mark, with the space before it, and per other white space.

    `words` are the tokens of a closed vocabulary with tabs between them: ids 1, 2, ... in their
    order; id 0 is BOS and decodes to nothing. `vocab_size` is rounded up to a multiple of 8; the
    ids above the words' decode to U+FFFD.

    Raises:
        ValueError: For words that repeat, and for texts that are not one word.
    """

    words: str  # of the vocabulary, between tabs

    bos_text = ""

    def __post_init__(self) -> None:
        _check_distinct("words", self.tokens)
        for word in self.tokens:
            if re.fullmatch(WORD, word) is None:
                raise ValueError(f"words hold {word!r}, which is no single word: split it")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Words":
        """Returns the tokenizer of all words of the texts, sorted.

        Raises ValueError for a tab, which stands between words.
        """
        return cls("\t".join(sorted({word for text in texts for word in re.findall(WORD, text)})))

    @cached_property
    def tokens(self) -> list[str]:
        """Its words."""
        return self.words.split("\t")

    @property
    def fingerprint(self) -> str:
        """Hash of the words."""
        return content_hash(self.words.encode())

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`. Raises ValueError for a word outside the vocabulary."""
        return self._ids_of("word", re.findall(WORD, text), "vocabulary")


def _check_distinct(name: str, tokens: Sequence[str]) -> None:
    if repeated := sorted(token for token, count in Counter(tokens).items() if count > 1):
        raise ValueError(f"{name} holds {repeated[0]!r} more than once: give every token once")


def _check_ids(ids: Iterable[int], size: int) -> list[int]:
    """Returns the ids as a list of ints. Raises ValueError for one outside 0..size-1."""
    listed = [int(i) for i in ids]
    for i in listed:
        if not 0 <= i < size:
            raise ValueError(f"token id {i} is outside 0..{size - 1}: check the ids")
    return listed

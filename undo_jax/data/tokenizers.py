"""Tokenizers behind one small interface: characters, SentencePiece and Hugging Face files."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol


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

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids."""
        ...


@dataclass(frozen=True)
class Characters:
    """One token per character: ids 1, 2, ... in the order of `alphabet`; id 0 is BOS.

    BOS decodes to a newline, which the alphabet therefore may not hold. `vocab_size` is rounded
    up to a multiple of 8; the ids in between stand for nothing and decode to U+FFFD.
    """

    alphabet: str

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
        return -(-(len(self.alphabet) + 1) // 8) * 8

    @property
    def bos_id(self) -> int:
        """Always 0."""
        return 0

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
        characters = "\n" + self.alphabet.ljust(self.vocab_size - 1, "\N{REPLACEMENT CHARACTER}")
        text = []
        for i in ids:
            if not 0 <= i < len(characters):
                raise ValueError(f"token id {i} is outside 0..{len(characters) - 1}; check the ids")
            text.append(characters[i])
        return "".join(text)


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model file. Control pieces such as BOS decode to nothing."""

    path: str | Path

    def __post_init__(self) -> None:
        """Load at once, so that a bad path fails here.

        Raises FileNotFoundError without the file, ModuleNotFoundError without the library and
        ValueError when the file is no model or its model has no BOS piece.
        """
        if self._processor.bos_id() < 0:
            raise ValueError(f"{self.path} has no BOS piece; train the model with a bos_id >= 0")

    @cached_property
    def _processor(self) -> Any:
        _check_file(self.path)
        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise _missing("sentencepiece") from None
        try:
            return sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError):
            raise ValueError(
                f"{self.path} is not a SentencePiece model; give a trained .model file"
            ) from None

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.get_piece_size()

    @property
    def bos_id(self) -> int:
        """Id of the BOS piece."""
        return self._processor.bos_id()

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

    path: str | Path
    bos_token: str = "<bos>"

    def __post_init__(self) -> None:
        """Load at once, so that a bad path fails here.

        Raises FileNotFoundError without the file, ModuleNotFoundError without the library and
        ValueError when the file is no tokenizer or has no `bos_token`.
        """
        if self._tokenizer.token_to_id(self.bos_token) is None:
            raise ValueError(
                f"{self.path} has no token {self.bos_token!r}; name its BOS token with bos_token"
            )

    @cached_property
    def _tokenizer(self) -> Any:
        _check_file(self.path)
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise _missing("tokenizers") from None
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception:  # The library raises plain Exception for a file that does not parse.
            raise ValueError(
                f"{self.path} is not a tokenizers file; give a tokenizer.json"
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def vocab_size(self) -> int:
        """Largest token id plus one, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_id(self) -> int:
        """Id of `bos_token`."""
        return self._tokenizer.token_to_id(self.bos_token)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no tokenizer file at {path}; check the path")


def _missing(library: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{library} is not installed; run `pip install undo_jax[text]`", name=library
    )

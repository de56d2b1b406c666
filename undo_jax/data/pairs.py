"""Questions with their answers as documents of which losses count the answers alone."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from undo_jax.data.packing import pack
from undo_jax.data.records import records, text
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.data.trained_tokenizers import HuggingFace
from undo_jax.types import Packed

Tokens = list[int]


@dataclass(frozen=True)
class Pairs:
    """Questions and answers in local files, Parquet or JSON lines.

    A document is the `template` with a pair in it; what counts is all after the question's part of
    it, and the token that ends the document. Spaces before {answer} belong to the answer. If it is
    `marked`, as one that `undo_jax.data.chat.chat` reads, special tokens that it names are these
    tokens, and spaces before {answer} do not count. A hash decides which pairs are for validation.
    Equal documents are the same part of an experiment wherever they lie.

    Raises ValueError for a template without {question} before {answer} and a share outside (0, 1);
    reading raises what `records` does.
    """

    pattern: str | Path  # files, a folder or a glob of questions with answers
    template: str = "Question: {question}\nAnswer: {answer}"  # how a pair is written
    question: str = "question"  # names of the fields
    answer: str = "answer"  # name of the field of answers
    validation_share: float = 0.05  # of pairs, kept out of training
    marked: bool = False  # the template names special tokens; for a Hugging Face tokenizer

    def __post_init__(self) -> None:
        """Check the template and the share."""
        check_template(self.template)
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"validation_share={self.validation_share}: give a share between 0 and 1"
            )

    @cached_property
    def documents(self) -> tuple[tuple[str, str], ...]:
        """Each document as what is given and what is learned."""
        made = []
        for place, record in records(self.pattern, (self.question, self.answer)):
            question, answer = (
                text(record[field], f"{place} field {field!r}")
                for field in (self.question, self.answer)
            )
            made.append(filled(self.template, question, answer))
        if not made:
            raise ValueError(f"{self.pattern} holds no pairs: give one a line, or a row")
        return tuple(made)

    @property
    def fingerprint(self) -> str:
        """Hash of the documents, of which are for validation, and of the template if marked."""
        content = [self.documents, self.validation_share, *([self.template] * self.marked)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def rows(
        self, split: Literal["train", "validation"], tokenizer: Tokenizer, row_length: int
    ) -> Packed:
        """Rows of a split, each of which begins with a document, and their weights.

        Raises ValueError for a split that does not fill one row and, if the template is marked, for
        a pair that names a special token and for another tokenizer than Hugging Face's.
        """
        return _rows(self, split, tokenizer, row_length)


def check_template(template: str) -> None:
    """Raises ValueError for a template without {question} before {answer}."""
    before, found, after = template.partition("{answer}")
    if not found or before.count("{question}") != 1 or "{question}" in after:
        raise ValueError(f"template={template!r}: give one {{question}}, and then one {{answer}}")


def filled(template: str, question: str, answer: str) -> tuple[str, str]:
    """A pair in a template: what is given, and what is learned."""
    before, _, after = template.partition("{answer}")
    return before.replace("{question}", question), answer + after


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Tokens of both: those of the context alone, and the rest of those of the whole text.

    Spaces that end the context open the continuation. Both as in lm-evaluation-harness.
    """
    alone = tokenizer.encode(context.rstrip())
    return alone, tokenizer.encode(context + continuation)[len(alone) :]


@cache
def _rows(pairs: Pairs, split: str, tokenizer: Tokenizer, row_length: int) -> Packed:
    chosen = [one for one in pairs.documents if _held_out(pairs, *one) == (split == "validation")]
    encode = _marking(pairs, tokenizer) if pairs.marked else partial(encode_pair, tokenizer)
    encoded = [encode(*one) for one in chosen]
    size = sum(len(given) + len(learned) + 1 for given, learned in encoded)
    if size < row_length:
        raise ValueError(
            f"{pairs.pattern} has {len(chosen)} pairs for {split}, {size} tokens, and a row takes "
            f"{row_length}: give more, another validation_share, or a shorter row_length"
        )
    return pack_pairs(encoded, tokenizer, row_length)


def pack_pairs(
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: Tokenizer, row_length: int
) -> Packed:
    """Rows of encoded pairs, each of which begins with one; what is learned has weight 1.

    Raises what `pack` does.
    """
    documents = ([*given, *learned] for given, learned in encoded)
    rows = pack(documents, row_length, tokenizer.bos_id, align=True)
    counted = ([0] * len(given) + [1] * len(learned) for given, learned in encoded)
    weights = pack(counted, row_length, 1, align=True).astype(np.float32)
    return Packed(rows, weights)


def _marking(pairs: Pairs, tokenizer: Tokenizer) -> Callable[[str, str], tuple[Tokens, Tokens]]:
    """Encodes what is given and what is learned as one text that names special tokens."""
    if not isinstance(tokenizer, HuggingFace):
        raise ValueError(
            f"marked={pairs.marked} with {type(tokenizer).__name__}, which has no names of special "
            "tokens: give a tokenizer.json, or a plain template"
        )

    def encode(given: str, learned: str) -> tuple[Tokens, Tokens]:
        for mark in tokenizer.marks:
            if (given + learned).count(mark) != pairs.template.count(mark):
                raise ValueError(
                    f"{pairs.pattern} has a pair with {mark!r}, a special token that only the "
                    "template may name: clean the text"
                )
        alone, whole = tokenizer.encode_marked(given), tokenizer.encode_marked(given + learned)
        same = (one == other for one, other in zip(alone, whole, strict=False))
        count = sum(itertools.takewhile(bool, same))  # a token across the border is learned
        return whole[:count], whole[count:]

    return encode


def _held_out(pairs: Pairs, given: str, learned: str) -> bool:
    digest = hashlib.blake2b(f"{given}{learned}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < pairs.validation_share * 2**64

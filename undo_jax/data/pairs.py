"""Questions with their answers as documents of which losses count the answers alone."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from undo_jax.checks import check_share
from undo_jax.data.files import json_hash
from undo_jax.data.packing import pack
from undo_jax.data.records import Record, read_all, text_field
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.data.trained_tokenizers import HuggingFace
from undo_jax.types import Packed

Tokens = list[int]


@dataclass(frozen=True)
class Pairs:
    """Questions and answers in local files, Parquet or JSON lines.

    A document is the `template` with a pair in it. Losses count what follows the question's part of
    the template, and the token that ends the document. Spaces before {answer} belong to the answer.
    A hash decides which pairs are for validation. The fingerprint depends on the documents, not on
    the path.

    If it is `marked`, names of special tokens in the template are encoded as these tokens, and
    spaces before {answer} do not count; for templates that `undo_jax.data.chat.chat` reads.

    Raises:
        ValueError: For a template without {question} before {answer} and a share outside (0, 1);
            reading raises what `records.read_all` does.
    """

    pattern: str | Path  # files, a folder or a glob of questions with answers
    template: str = "Question: {question}\nAnswer: {answer}"  # how a pair is written
    question: str = "question"  # name of the field of questions
    answer: str = "answer"  # name of the field of answers
    validation_share: float = 0.05  # of pairs, kept out of training
    marked: bool = False  # the template names special tokens; for a Hugging Face tokenizer

    def __post_init__(self) -> None:
        check_template(self.template)
        check_share("validation_share", self.validation_share, zero=False)

    @cached_property
    def documents(self) -> tuple[tuple[str, str], ...]:
        """The prompt and the answer of each document."""

        def fill(record: Record, place: str) -> tuple[str, str]:
            question = text_field(record, self.question, place)
            return fill_template(self.template, question, text_field(record, self.answer, place))

        return read_all(self.pattern, (self.question, self.answer), fill, "pairs")

    @property
    def fingerprint(self) -> str:
        """Hash of the documents, of which are for validation, and of the template if marked."""
        content = [self.documents, self.validation_share, *([self.template] * self.marked)]
        return json_hash(content)

    def rows(
        self, split: Literal["train", "validation"], tokenizer: Tokenizer, row_length: int
    ) -> Packed:
        """Returns packed rows of a split, each of which begins with a document.

        Args:
            split: "train" or "validation".
            tokenizer: Encodes the documents; a `HuggingFace` one if the template is marked.
            row_length: Tokens predicted in a row, T.

        Returns:
            Tokens, int32 [R, T + 1], and weights of the same shape: 1 for tokens that losses count.

        Raises:
            ValueError: For a split that does not fill one row and, if the template is marked, for a
                pair that names a special token and for another tokenizer than Hugging Face's.
        """
        return _rows(self, split, tokenizer, row_length)


def check_template(template: str) -> None:
    """Raises ValueError for a template without {question} before {answer}."""
    before, answer, after = template.partition("{answer}")
    if not answer or before.count("{question}") != 1 or "{question}" in after:
        raise ValueError(f"template={template!r}: give one {{question}}, and then one {{answer}}")


def fill_template(template: str, question: str, answer: str) -> tuple[str, str]:
    """Returns the prompt and the answer of a pair in a template."""
    before, _, after = template.partition("{answer}")
    return before.replace("{question}", question), answer + after


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[Tokens, Tokens]:
    """Returns the tokens of the context alone, and the rest of the tokens of the whole text.

    Spaces that end the context open the continuation. Both as in lm-evaluation-harness.
    """
    context_ids = tokenizer.encode(context.rstrip())
    return context_ids, tokenizer.encode(context + continuation)[len(context_ids) :]


@cache
def _rows(pairs: Pairs, split: str, tokenizer: Tokenizer, row_length: int) -> Packed:
    documents = [
        document
        for document in pairs.documents
        if _is_validation(pairs, *document) == (split == "validation")
    ]
    encode = _marked_encoder(pairs, tokenizer) if pairs.marked else partial(encode_pair, tokenizer)
    encoded = [encode(*document) for document in documents]
    size = sum(len(prompt) + len(answer) + 1 for prompt, answer in encoded)
    if size < row_length:
        raise ValueError(
            f"{pairs.pattern} has {len(documents)} pairs for {split}, {size} tokens, and a row "
            f"takes {row_length}: give more, another validation_share, or a shorter row_length"
        )
    return pack_pairs(encoded, tokenizer, row_length)


def pack_pairs(
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
    tokenizer: Tokenizer,
    row_length: int,
    answers_only: bool = True,
) -> Packed:
    """Returns rows of encoded pairs, each of which begins with one.

    With `answers_only` there are weights, 1 for answers. Raises what `pack` does.
    """
    documents = ([*prompt, *answer] for prompt, answer in encoded)
    rows = pack(documents, row_length, tokenizer.bos_id, align=True)
    if not answers_only:
        return Packed(rows)
    counted = ([0] * len(prompt) + [1] * len(answer) for prompt, answer in encoded)
    weights = pack(counted, row_length, 1, align=True).astype(np.float32)
    return Packed(rows, weights)


def _marked_encoder(
    pairs: Pairs, tokenizer: Tokenizer
) -> Callable[[str, str], tuple[Tokens, Tokens]]:
    """Returns an encoder of a prompt and its answer as one text that names special tokens."""
    if not isinstance(tokenizer, HuggingFace):
        raise ValueError(
            f"marked={pairs.marked} with {type(tokenizer).__name__}, which has no names of special "
            "tokens: give a tokenizer.json, or a plain template"
        )

    def encode(prompt: str, answer: str) -> tuple[Tokens, Tokens]:
        for mark in tokenizer.marks:
            if (prompt + answer).count(mark) != pairs.template.count(mark):
                raise ValueError(
                    f"{pairs.pattern} has a pair with {mark!r}, a special token that only the "
                    "template may name: clean the text"
                )
        prompt_ids = tokenizer.encode_marked(prompt)
        ids = tokenizer.encode_marked(prompt + answer)
        equal = (a == b for a, b in zip(prompt_ids, ids, strict=False))
        count = sum(itertools.takewhile(bool, equal))  # a token across the border is of the answer
        return ids[:count], ids[count:]

    return encode


def _is_validation(pairs: Pairs, prompt: str, answer: str) -> bool:
    digest = hashlib.blake2b(f"{prompt}{answer}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < pairs.validation_share * 2**64

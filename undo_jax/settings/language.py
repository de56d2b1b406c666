"""Retain one language, forget another (paper §5): English and Korean, in packed rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from undo_jax.data.corpus import Corpus
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.loss import mean_cross_entropy
from undo_jax.setting import BatchField, Example, Setting, name_batch_fields
from undo_jax.types import LM, Metric, Metrics, Params

EXAMPLES = 6  # texts of either language
SEARCHED = 200  # rows
GIVEN, LEARNED = 12, 4  # tokens of one: its prompt, and what comes next


@dataclass(frozen=True)
class Language(Setting):
    """Scores are validation cross entropies in nats a token; lower is better.

    Raises ValueError for a share outside (0, 1), for numbers of validation rows that are not
    positive or do not divide, and, if the corpora exist, for another row length or tokenizer.
    """

    retain: Corpus
    forget: Corpus
    tokenizer: Tokenizer  # the one that both were packed with
    row_length: int = 2048  # tokens predicted in a row; both corpora are packed to it
    names: tuple[str, str] = ("English", "Korean")  # of retain and forget, in reports
    retain_share: float = 0.5  # of the pretraining mixture; reference: .5
    validation_rows: int = 240  # per language; reference: 500k tokens, 244 rows of 2048
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a document, not a row

    @property
    def batch_fields(self) -> tuple[BatchField, ...]:
        return name_batch_fields(weights=False, segments=self.segments)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {
            name: Metric(f"cross entropy on {language}", higher_is_better=False, unit="nats/token")
            for name, language in zip(self.headline, self.names, strict=True)
        }

    def __post_init__(self):
        at_once, wanted = self.rows_at_once, self.validation_rows
        if at_once < 1 or wanted < 1 or wanted % at_once:
            raise ValueError(
                f"validation_rows={wanted} is no positive multiple of rows_at_once={at_once}: make "
                "it one"
            )
        if not 0 < self.retain_share < 1:
            raise ValueError(f"retain_share={self.retain_share}: give a share between 0 and 1")
        if self.retain.exists and self.forget.exists:
            check_corpora((self.retain, self.forget), self.tokenizer, self.row_length)

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        if name not in ("pretrain", "oracle", "retain", "forget"):
            raise ValueError(f"no stream {name!r}: choose pretrain, oracle, retain or forget")
        check_corpora((self.retain, self.forget), self.tokenizer, self.row_length)
        retain, forget = self.retain.rows("train"), self.forget.rows("train")
        opens = self.tokenizer.bos_id if self.segments else None
        if name == "pretrain":
            shares = (self.retain_share, 1 - self.retain_share)
            return stream([retain, forget], batch_size, seed, shares, opens)
        return stream([forget if name == "forget" else retain], batch_size, seed, opens=opens)

    def eval_data(self) -> Any:
        """Validation rows of both languages, in groups. Raises ValueError if there are too few."""
        return {name: _groups(self, getattr(self, name)) for name in ("retain", "forget")}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        return {name: mean_cross_entropy(lm, params, rows) for name, rows in eval_data.items()}

    def examples(self) -> list[Example]:
        """How some validation texts of either language begin, and go on."""
        parts: tuple[tuple[Literal["retain", "forget"], Corpus], ...]
        parts = ("retain", self.retain), ("forget", self.forget)
        return [
            Example(given, learned, part, ends=False)
            for part, corpus in parts
            for given, learned in _beginnings(self.tokenizer, corpus)
        ]


def check_corpora(
    corpora: Iterable[Corpus], tokenizer: Tokenizer, row_length: int, name: str = "row_length"
) -> None:
    """Raises ValueError for a corpus packed with another tokenizer or to another row length.

    `name` is the field that says the length.
    """
    for corpus in corpora:
        packed = corpus.manifest["settings"]
        if packed["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
            raise ValueError(
                f"{corpus.folder} was packed with another tokenizer ({packed['vocab_size']} ids) "
                f"than the setting's ({tokenizer.vocab_size}): pack it again with it"
            )
        if packed["row_length"] != row_length:
            raise ValueError(
                f"{name}={row_length}, but {corpus.folder} has rows of "
                f"{packed['row_length']} tokens: set it so, or pack all to it"
            )


def _beginnings(tokenizer: Tokenizer, corpus: Corpus) -> list[tuple[str, str]]:
    """The first tokens of some validation documents, and those that follow."""
    rows, found = corpus.rows("validation"), []
    for ids in rows[np.arange(min(len(rows), SEARCHED))].tolist():
        opens = ids.index(tokenizer.bos_id) + 1 if tokenizer.bos_id in ids else len(ids)
        some = ids[opens : opens + GIVEN + LEARNED]
        given, text = tokenizer.decode(some[:GIVEN]), tokenizer.decode(some)
        whole = len(some) == GIVEN + LEARNED and tokenizer.bos_id not in some
        if whole and text.startswith(given) and "\N{REPLACEMENT CHARACTER}" not in text:
            found.append((given, text.removeprefix(given)))
    return found[:EXAMPLES]


def _groups(setting: Language, corpus: Corpus) -> np.ndarray:
    """The first validation rows of a corpus, int32 [G, B, T+1]."""
    rows, wanted = corpus.rows("validation"), setting.validation_rows
    if len(rows) < wanted:
        raise ValueError(
            f"{corpus.folder} has {len(rows)} validation rows and validation_rows={wanted}: set "
            "it lower, or pack with a larger validation share"
        )
    picked = rows[np.arange(wanted)]
    return picked.reshape(-1, setting.rows_at_once, picked.shape[1])

"""Retain one language, forget another (paper §5): English and Korean, in packed rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from undo_jax.checks import check_share
from undo_jax.data.corpus import Corpus
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.losses import cross_entropy
from undo_jax.setting import Example, Setting, check_stream
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Metric, Metrics, Params

EXAMPLES = 6  # of each language, for the demo
SEARCHED_ROWS = 200  # for examples
PROMPT_TOKENS, ANSWER_TOKENS = 12, 4  # of an example


@dataclass(frozen=True)
class Language(Setting):
    """Retain one language, forget another; a score is the validation cross entropy in nats/token.

    Raises:
        ValueError: for a share outside of (0, 1), a number of validation rows that is not a
            positive multiple of `rows_at_once`, and, if the corpora exist, for another row length
            or tokenizer than theirs.
    """

    retain: Corpus
    forget: Corpus
    tokenizer: Tokenizer  # the one that both corpora were packed with
    row_length: int = 2048  # tokens predicted in a row; both corpora are packed to it
    names: tuple[str, str] = ("English", "Korean")  # of retain and forget, in reports
    retain_share: float = 0.5  # of the pretraining mixture; reference: .5
    validation_rows: int = 240  # per language; reference: 500k tokens, 244 rows of 2048
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a document, not a row

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {
            name: Metric(f"cross entropy on {language}", higher_is_better=False, unit="nats/token")
            for name, language in zip(self.headline, self.names, strict=True)
        }

    def __post_init__(self):
        at_once, count = self.rows_at_once, self.validation_rows
        if at_once < 1 or count < 1 or count % at_once:
            raise ValueError(
                f"validation_rows={count} is no positive multiple of rows_at_once={at_once}: make "
                "it one"
            )
        check_share("retain_share", self.retain_share, zero=False)
        if self.retain.exists and self.forget.exists:
            check_corpora((self.retain, self.forget), self.tokenizer, self.row_length)

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        check_stream(name, ("pretrain", "oracle", "retain", "forget"))
        check_corpora((self.retain, self.forget), self.tokenizer, self.row_length)
        retain, forget = self.retain.rows("train"), self.forget.rows("train")
        sources, shares = [forget if name == "forget" else retain], [1.0]
        if name == "pretrain":
            sources, shares = [retain, forget], [self.retain_share, 1 - self.retain_share]
        return stream(sources, batch_size, seed, shares, self.document_start)

    def eval_data(self) -> Any:
        """Returns validation rows of each language, int32 [G, B, T+1].

        Raises ValueError if there are too few.
        """
        return {part: _group_rows(self, corpus) for part, corpus in self._corpora.items()}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        def loss(group):
            return cross_entropy(lm, params, rows(group))

        return {name: jnp.mean(lax.map(loss, tokens)) for name, tokens in eval_data.items()}

    def examples(self) -> list[Example]:
        """Returns the beginnings of some validation texts of each language, and what follows."""
        return [
            Example(prompt, answer, part, ends=False)
            for part, corpus in self._corpora.items()
            for prompt, answer in _find_beginnings(self.tokenizer, corpus)
        ]

    @property
    def _corpora(self) -> dict[Literal["retain", "forget"], Corpus]:
        return {"retain": self.retain, "forget": self.forget}


def check_corpora(
    corpora: Iterable[Corpus], tokenizer: Tokenizer, row_length: int, name: str = "row_length"
) -> None:
    """Raises ValueError for a corpus packed with another tokenizer or to another row length.

    `name` is the field of the setting that holds the length.
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


def _find_beginnings(tokenizer: Tokenizer, corpus: Corpus) -> list[tuple[str, str]]:
    """Returns the first tokens of some validation documents as text, and those that follow."""
    rows, beginnings = corpus.rows("validation"), []
    for ids in rows[np.arange(min(len(rows), SEARCHED_ROWS))].tolist():
        start = ids.index(tokenizer.bos_id) + 1 if tokenizer.bos_id in ids else len(ids)
        tokens = ids[start : start + PROMPT_TOKENS + ANSWER_TOKENS]
        prompt, text = tokenizer.decode(tokens[:PROMPT_TOKENS]), tokenizer.decode(tokens)
        is_full = len(tokens) == PROMPT_TOKENS + ANSWER_TOKENS and tokenizer.bos_id not in tokens
        if is_full and text.startswith(prompt) and "\N{REPLACEMENT CHARACTER}" not in text:
            beginnings.append((prompt, text.removeprefix(prompt)))
    return beginnings[:EXAMPLES]


def _group_rows(setting: Language, corpus: Corpus) -> np.ndarray:
    """Returns the first validation rows of a corpus, int32 [G, B, T+1]."""
    rows, count = corpus.rows("validation"), setting.validation_rows
    if len(rows) < count:
        raise ValueError(
            f"{corpus.folder} has {len(rows)} validation rows and validation_rows={count}: set "
            "it lower, or pack with a larger validation share"
        )
    chosen = rows[np.arange(count)]
    return chosen.reshape(-1, setting.rows_at_once, chosen.shape[1])

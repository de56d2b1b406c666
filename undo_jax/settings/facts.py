"""Retain facts about some invented families, forget facts about others."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from undo_jax.checks import check_fields
from undo_jax.data.fiction import KINDS, PARTS, Fiction, PersonFact, facts, questions, statements
from undo_jax.data.pairs import pack_pairs
from undo_jax.data.questions import QuestionList
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer, Words
from undo_jax.evals.choices import log_likelihoods, right, write_sheets
from undo_jax.evals.quiz import Quiz
from undo_jax.losses import cross_entropy
from undo_jax.setting import Example, Setting, check_stream
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Metric, Metrics, Packed, Params

EXAMPLES = 8  # of each part, for the demo
ROWS_AT_ONCE = 2**12  # evaluated at once


@dataclass(frozen=True)
class Facts(Setting):
    """Retain and forget facts about invented families, as statements and questions.

    A score is the accuracy on questions with four choices; chance is 0.25. A model that never saw
    the forget families is a true oracle: it knows the language, the form of the questions and all
    first names, but none of the facts. `other_half` is the accuracy on forget people whom stream
    forget/half does not mention: if relearning about others brings it back, those facts were
    suppressed, not forgotten.

    Raises:
        ValueError: for a size that is not positive.
    """

    fiction: Fiction = Fiction()
    documents: int = 20_000  # drawn for each stream
    row_length: int = 64  # tokens predicted in a row
    validation_rows: int = 8  # of each stream, for its cross entropy
    data_seed: int = 99  # of the documents, the same for all models
    answers_only: bool = False  # losses count only values and the tokens that end them
    segments: bool = False  # a sequence is a statement, not a row

    def __post_init__(self):
        check_fields(self, 1, "documents", "row_length", "validation_rows")
        check_fields(self, 0, "data_seed")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {
            "retain": Metric("accuracy on families that are kept", higher_is_better=True),
            "forget": Metric("accuracy on families that are forgotten", higher_is_better=True),
            "other_half": Metric("accuracy on the forgotten not relearned", higher_is_better=True),
        }

    def get_tokenizer(self) -> Tokenizer:
        return _make_tokenizer(self.fiction)

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        retain, forget = (facts(self.fiction, part) for part in PARTS)
        streams = {
            "pretrain": (*retain, *forget),
            "oracle": retain,
            "retain": retain,
            "forget": forget,
            "forget/half": tuple(fact for fact in forget if fact.first_half),
        }
        check_stream(name, streams)
        rows = _pack_statements(self, streams[name])
        return stream([rows], batch_size, seed, opens=self.document_start)

    def eval_data(self) -> Any:
        """Returns the questions of each part, and rows of their statements."""
        return {part: _eval_data_of(self, part) for part in PARTS}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        """Returns accuracies, and the cross entropy in nats on rows of each part."""
        scores = {}
        for part, (sheets, other_half_weights, packed) in eval_data.items():
            is_right = right(log_likelihoods(lm, params, sheets), sheets)
            scores[part] = jnp.mean(is_right)
            scores[f"cross_entropy/{part}"] = cross_entropy(lm, params, rows(packed))
            if part == "forget":
                scores["other_half"] = jnp.dot(other_half_weights, is_right)
        return scores

    def examples(self) -> list[Example]:
        """Returns questions about random people of each part."""
        examples = []
        for part in PARTS:
            last = [statements(fact)[-1] for fact in facts(self.fiction, part)]
            order = np.random.default_rng(self.data_seed).permutation(len(last))[:EXAMPLES]
            examples += [Example(last[i].prompt, last[i].answer, part) for i in order]
        return examples


def _eval_data_of(setting: Facts, part: Literal["retain", "forget"]) -> tuple[Any, np.ndarray, Any]:
    """Returns sheets, weights that average over the people not relearned, and validation rows."""
    quiz = Quiz(QuestionList(questions(setting.fiction, part)), style="cloze", description="")
    part_facts = facts(setting.fiction, part)
    is_other_half = np.array([not fact.first_half for fact in part_facts], np.float32)
    sheets = write_sheets(quiz, setting.get_tokenizer(), ROWS_AT_ONCE)
    packed = _pack_statements(setting, part_facts)
    packed = Packed(*(x if x is None else x[: setting.validation_rows] for x in packed))
    return sheets, is_other_half / max(is_other_half.sum(), 1), packed


@cache
def _make_tokenizer(fiction: Fiction) -> Words:
    """Returns a tokenizer of every word of all statements and choices."""
    all_facts = (fact for part in PARTS for fact in facts(fiction, part))
    texts = [text.prompt + text.answer for fact in all_facts for text in statements(fact)]
    return Words.of([*texts, *(f" {value}" for kind in KINDS.values() for value in kind.values)])


@cache
def _pack_statements(setting: Facts, facts_in_rows: tuple[PersonFact, ...]) -> Packed:
    """Returns rows of random statements of some facts, each row starting at a statement."""
    tokenizer, rng = setting.get_tokenizer(), np.random.default_rng(setting.data_seed)
    encoded = [
        (tokenizer.encode(text.prompt), tokenizer.encode(text.answer))
        for fact in facts_in_rows
        for text in statements(fact)
    ]
    drawn = [encoded[i] for i in rng.integers(len(encoded), size=setting.documents)]
    return pack_pairs(drawn, tokenizer, setting.row_length, setting.answers_only)

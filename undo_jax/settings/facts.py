"""Retain what is known of some invented families, forget what is known of others."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from undo_jax.data.fiction import KINDS, PARTS, Fiction, PersonFact, facts, questions, statements
from undo_jax.data.packing import pack
from undo_jax.data.questions import QuestionList
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer, Words
from undo_jax.evals.choices import log_likelihoods, right, write_sheets
from undo_jax.evals.quiz import Quiz
from undo_jax.losses import cross_entropy
from undo_jax.setting import Example
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Metric, Metrics, Packed, Params

EXAMPLES = 8  # of either part
LARGE = 2**12  # rows of an evaluation at once


@dataclass(frozen=True)
class Facts:
    """Scores are accuracies on questions with four choices: 0.25 is chance.

    A model that never saw the forgotten families is a true oracle: it knows the language, how
    questions are asked, and all first names, but none of the facts. `other_half` is the accuracy
    on forgotten people whom stream forget/half does not mention: what relearning others brings
    back was not forgotten. Raises ValueError for sizes that are not positive.
    """

    fiction: Fiction = Fiction()
    documents: int = 20_000  # drawn for each stream
    row_length: int = 64  # tokens predicted in a row
    validation_rows: int = 8  # per stream, for its cross entropy
    data_seed: int = 99  # of the documents, the same for all models
    answers_only: bool = False  # losses count only values and the tokens that end them
    segments: bool = False  # a sequence is a statement, not a row

    def __post_init__(self):
        for name in ("documents", "row_length", "validation_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.data_seed < 0:
            raise ValueError(f"data_seed={self.data_seed}: it must be 0 or more")

    @property
    def batch_fields(self) -> tuple[Literal["weights", "segments"], ...]:
        return (("weights",) if self.answers_only else ()) + (
            ("segments",) if self.segments else ()
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {
            "retain": Metric("accuracy on families that are kept", higher_is_better=True),
            "forget": Metric("accuracy on families that are forgotten", higher_is_better=True),
            "other_half": Metric("accuracy on the forgotten not relearned", higher_is_better=True),
        }

    @property
    def headline(self) -> tuple[str, str]:
        return "retain", "forget"

    def get_tokenizer(self) -> Tokenizer:
        return _tokenizer(self.fiction)

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        retain, forget = (facts(self.fiction, part) for part in PARTS)
        known = {
            "pretrain": (*retain, *forget),
            "oracle": retain,
            "retain": retain,
            "forget": forget,
            "forget/half": tuple(fact for fact in forget if fact.first_half),
        }
        if name not in known:
            raise ValueError(f"no stream {name!r}: choose one of {', '.join(known)}")
        opens = self.get_tokenizer().bos_id if self.segments else None
        return stream([_packed(self, known[name])], batch_size, seed, opens=opens)

    def eval_data(self) -> Any:
        """The questions of both parts, and rows of their statements."""
        return {part: _questions(self, part) for part in PARTS}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        """Accuracies, and cross entropy (nats) on rows of each part."""
        scores = {}
        for part, (sheets, others, packed) in eval_data.items():
            verdicts = right(log_likelihoods(lm, params, sheets), sheets)
            scores[part] = jnp.mean(verdicts)
            scores[f"cross_entropy/{part}"] = cross_entropy(lm, params, rows(packed))
            if part == "forget":
                scores["other_half"] = jnp.dot(others, verdicts)
        return scores

    def examples(self) -> list[Example]:
        """Questions about people of either part, at random."""
        found = []
        for part in PARTS:
            asked = [statements(fact)[-1] for fact in facts(self.fiction, part)]
            order = np.random.default_rng(self.data_seed).permutation(len(asked))[:EXAMPLES]
            found += [Example(asked[i].prompt, asked[i].answer, part) for i in order]
        return found

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Accuracy at most `tolerance` (absolute) below the teacher's, as in arithmetic."""
        return teacher - student < tolerance


def _questions(setting: Facts, part: Literal["retain", "forget"]) -> tuple[Any, np.ndarray, Any]:
    """Sheets, the weights of those who are not relearned, and validation rows."""
    quiz = Quiz(QuestionList(questions(setting.fiction, part)), style="cloze", description="")
    known = facts(setting.fiction, part)
    others = np.array([not fact.first_half for fact in known], np.float32)
    sheets = write_sheets(quiz, setting.get_tokenizer(), LARGE)
    packed = _packed(setting, known)
    packed = Packed(*(x if x is None else x[: setting.validation_rows] for x in packed))
    return sheets, others / max(others.sum(), 1), packed


@cache
def _tokenizer(fiction: Fiction) -> Words:
    """Every word of all statements and choices."""
    known = (fact for part in PARTS for fact in facts(fiction, part))
    texts = [one.prompt + one.answer for fact in known for one in statements(fact)]
    return Words.of([*texts, *(f" {value}" for kind in KINDS.values() for value in kind.values)])


@cache
def _packed(setting: Facts, known: tuple[PersonFact, ...]) -> Packed:
    """Rows of random statements, each row starting at one."""
    tokenizer, rng = setting.get_tokenizer(), np.random.default_rng(setting.data_seed)
    said = [one for fact in known for one in statements(fact)]
    texts = [(tokenizer.encode(one.prompt), tokenizer.encode(one.answer)) for one in said]
    drawn = [texts[i] for i in rng.integers(len(texts), size=setting.documents)]
    documents = ([*given, *learned] for given, learned in drawn)
    packed, weights = pack(documents, setting.row_length, tokenizer.bos_id, align=True), None
    if setting.answers_only:  # weights, packed like tokens: documents have the same lengths
        counted = ([0] * len(given) + [1] * len(learned) for given, learned in drawn)
        weights = pack(counted, setting.row_length, 1, align=True).astype(np.float32)
    return Packed(packed, weights)

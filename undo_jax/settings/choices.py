"""Forget the subject of a multiple-choice quiz, retain other quizzes and text: WMDP and MMLU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from undo_jax.checks import check_fields, check_share
from undo_jax.data.corpus import Corpus
from undo_jax.data.pairs import Pairs
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.choices import Sheets, accuracy, log_likelihoods, right, write_sheets
from undo_jax.evals.generate import WHOLE
from undo_jax.evals.quiz import Quiz
from undo_jax.losses import cross_entropy
from undo_jax.runtime.sharding import constrain
from undo_jax.setting import BatchField, Setting, check_stream, name_batch_fields
from undo_jax.settings.language import check_corpora
from undo_jax.types import LM, Metric, Metrics, Packed, Params, Rows, Scores

NEAR = {  # subjects of MMLU close to those of WMDP, which get a score of their own
    "biology": (
        "anatomy", "college_biology", "college_medicine", "high_school_biology",
        "medical_genetics", "virology",
    ),
    "cybersecurity": ("college_computer_science", "computer_security"),
}  # fmt: skip
RESERVED = ("retain", "forget", "forget_text")  # names of metrics that no quiz may have


@dataclass(frozen=True)
class Part:
    """Text or pairs, and their share of a stream's rows.

    Raises ValueError for a share that is not positive; shares need not sum to 1.
    """

    source: Corpus | Pairs
    share: float = 1.0

    def __post_init__(self):
        if not 0 < self.share < float("inf"):
            raise ValueError(f"share={self.share}: give a positive number; they need not sum to 1")


@dataclass(frozen=True)
class Choices(Setting):
    """Forget the subject of a quiz; retain text and other quizzes.

    The forget score is the accuracy on the quiz `forgotten`, at every evaluation. The retain score
    is the cross entropy on validation rows in nats/token. `retain_quizzes` are scored once a model
    is finished, those with subjects `apart` also for these and for the rest. For WMDP and
    MMLU with 5 shots:

        mmlu = Quiz(Questions("mmlu/test"), examples=Questions("mmlu/dev"), shots=5,
                    apart=NEAR["biology"])
        Choices(retain=(Part(Corpus("retain")),), forget=(Part(Pairs("bio.jsonl")),),
                tokenizer=load_tokenizer("tokenizer.model"), retain_quizzes=(("mmlu", mmlu),),
                forgotten=Quiz(Questions("wmdp-bio"), subject="biology"))

    Streams are retain, forget, pretrain (a mix of both by `retain_share`), oracle (the same as
    retain), and general (text that is neither, for distillation; its rows have
    `general_row_length` tokens).

    Raises:
        ValueError: for parts that do not fit together.
    """

    retain: tuple[Part, ...]
    forget: tuple[Part, ...]
    tokenizer: Tokenizer  # the one that the corpora were packed with
    forgotten: Quiz
    retain_quizzes: tuple[tuple[str, Quiz], ...] = ()
    general: tuple[Part, ...] = ()
    row_length: int = 256  # tokens predicted in a row; corpora are packed to it; reference: 256
    retain_share: float = 0.5  # of stream pretrain; reference: .5 of the relearning mixture
    validation_rows: int = 64  # of each part at most
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a document, not a row
    general_row_length: int | None = field(  # reference: 1024; None: row_length
        default=None, metadata={"identity": "changed"}
    )

    def __post_init__(self):
        names = [name for name, _ in self.retain_quizzes]
        taken = {*RESERVED, *(f"{name}_{part}" for name in names for part in ("apart", "rest"))}
        for name in names:
            if name in taken or names.count(name) > 1:
                raise ValueError(
                    f"retain_quizzes has a quiz {name!r}, a name that is taken: give another"
                )
        check_fields(self, 1, "row_length", "general_row_length", "validation_rows", "rows_at_once")
        for name in ("retain", "forget"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give it a Part(...) at least")
        check_share("retain_share", self.retain_share, zero=False)
        if all(c.exists for c in (*_corpora(self.retain, self.forget), *_corpora(self.general))):
            self._check_corpora()

    @property
    def row_lengths(self) -> Mapping[str, int]:
        """The row length of stream general."""
        return {"general": self.general_row_length or self.row_length}

    def _check_corpora(self) -> None:
        """Raises ValueError for corpora of another tokenizer or row length."""
        check_corpora(_corpora(self.retain, self.forget), self.tokenizer, self.row_length)
        length = self.row_lengths["general"]
        check_corpora(_corpora(self.general), self.tokenizer, length, "general_row_length")

    @property
    def _has_weights(self) -> bool:
        """Whether a part has weights; then all streams have them."""
        parts = (*self.retain, *self.forget, *self.general)
        return any(isinstance(part.source, Pairs) for part in parts)

    @property
    def batch_fields(self) -> tuple[BatchField, ...]:
        return name_batch_fields(weights=self._has_weights, segments=self.segments)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        metrics = {
            "retain": Metric("cross entropy on retain text", False, "nats/token"),
            "forget": Metric("accuracy on what is forgotten", True),
            "forget_text": Metric("cross entropy on forget text", False, "nats/token"),
        }
        for name, quiz in self.retain_quizzes:
            label = f"accuracy on {name}"
            metrics[name] = Metric(label, True, at="end")
            if quiz.apart:
                metrics[f"{name}_apart"] = Metric(f"{label}, subjects apart", True, at="end")
                metrics[f"{name}_rest"] = Metric(f"{label}, the rest", True, at="end")
        return metrics

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        parts = {
            "pretrain": mix(self.retain, self.forget, self.retain_share),
            "oracle": self.retain,
            "retain": self.retain,
            "forget": self.forget,
            "general": self.general,
        }
        check_stream(name, (stream for stream, sources in parts.items() if sources))
        self._check_corpora()
        length = self.row_lengths.get(name, self.row_length)
        sources = [_read_rows(self, part.source, "train", length) for part in parts[name]]
        shares = [part.share for part in parts[name]]
        return stream(sources, batch_size, seed, shares, self.document_start)

    def eval_data(self) -> Any:
        """Returns the sheets of quiz `forgotten`, and validation rows of retain and forget text.

        Raises ValueError for any quiz that cannot be asked, also one in `retain_quizzes`.
        """
        for _, quiz in self.retain_quizzes:
            quiz.posed()
        return {
            "quiz": _sheets(self.forgotten, self.tokenizer, self.rows_at_once),
            "retain": _group_validation_rows(self, self.retain),
            "forget_text": _group_validation_rows(self, self.forget),
        }

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        losses = {
            name: _cross_entropy(lm, params, eval_data[name]) for name in ("retain", "forget_text")
        }
        return {**losses, "forget": accuracy(lm, params, eval_data["quiz"])}

    def at_end(self, lm: LM, params: Params) -> Scores:
        """Returns the accuracy on each of `retain_quizzes`, its subjects apart, and the rest."""
        scores = {}
        for name, quiz in self.retain_quizzes:
            sheets = _sheets(quiz, self.tokenizer, self.rows_at_once)
            is_right = np.asarray(_answer_quiz(lm, params, sheets))
            scores[name] = float(is_right.mean())
            if quiz.apart:
                is_apart = [posed.question.subject in quiz.apart for posed in quiz.posed()]
                scores[f"{name}_apart"] = float(is_right[np.array(is_apart)].mean())
                scores[f"{name}_rest"] = float(is_right[~np.array(is_apart)].mean())
        return scores


@jax.jit(static_argnums=0)
def _answer_quiz(lm: LM, params: Params, sheets: Sheets) -> Float[Array, " N"]:
    """Returns 1 for each question that is answered right, else 0; on every process."""
    return constrain(right(log_likelihoods(lm, lm.rounded(params), sheets), sheets), WHOLE)


@cache
def _sheets(quiz: Quiz, tokenizer: Tokenizer, rows_at_once: int) -> Sheets:
    return write_sheets(quiz, tokenizer, rows_at_once)


def mix(retain: Sequence[Part], forget: Sequence[Part], retain_share: float) -> tuple[Part, ...]:
    """Returns all parts, with shares of which those of `retain` sum to `retain_share`, all to 1."""
    mixed = []
    for parts, share in ((retain, retain_share), (forget, 1 - retain_share)):
        total = sum(part.share for part in parts)
        mixed += [replace(part, share=share * part.share / total) for part in parts]
    return tuple(mixed)


def _corpora(*groups: Sequence[Part]) -> list[Corpus]:
    """Returns the corpora among the sources of parts."""
    sources = (part.source for parts in groups for part in parts)
    return [source for source in sources if isinstance(source, Corpus)]


def _read_rows(
    setting: Choices, source: Corpus | Pairs, split: Literal["train", "validation"], length: int
) -> Packed:
    """Returns rows of a source; with weights if any part of the setting has them."""
    if isinstance(source, Pairs):
        return source.rows(split, setting.tokenizer, length)
    rows = source.rows(split)
    weights = np.broadcast_to(np.float32(1), rows.shape) if setting._has_weights else None
    return Packed(rows, weights)


def _group_validation_rows(setting: Choices, parts: Sequence[Part]) -> list[Packed]:
    """Returns the first validation rows of each part, [G, B, T+1].

    The weights of a part's targets sum to its share of the whole.
    """
    total, groups = sum(part.share for part in parts), []
    for part in parts:
        packed = _read_rows(setting, part.source, "validation", setting.row_length)
        count = min(setting.validation_rows, len(packed.tokens))
        size = min(setting.rows_at_once, count)
        tokens = packed.tokens[np.arange(count)]
        weights = np.ones(tokens.shape, np.float32) if packed.weights is None else packed.weights
        weights = np.array(weights[:count])
        weights *= part.share / total / weights[:, 1:].sum()
        padding = [(0, -count % size), (0, 0)]  # rows with weight 0
        groups.append(
            Packed(*(np.pad(x, padding).reshape(-1, size, x.shape[1]) for x in (tokens, weights)))
        )
    return groups


def _cross_entropy(lm: LM, params: Params, parts: Sequence[Packed]) -> Float[Array, ""]:
    """Returns the cross entropy averaged over parts by their shares, computed group by group."""

    def of_group(group: Packed):
        inputs, targets = group.tokens[:, :-1], group.tokens[:, 1:]
        return cross_entropy(lm, params, Rows(inputs, targets, group.weights[:, 1:]))

    return sum((jnp.sum(lax.map(of_group, part)) for part in parts), jnp.zeros(()))

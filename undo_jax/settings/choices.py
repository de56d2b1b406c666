"""Forget what one quiz asks and keep the rest, as WMDP and MMLU: text, pairs and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from undo_jax.data.corpus import Corpus
from undo_jax.data.pairs import Pairs
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.choices import Sheets, accuracy, log_likelihoods, right, write_sheets
from undo_jax.evals.generate import WHOLE
from undo_jax.evals.quiz import Quiz
from undo_jax.losses import cross_entropy
from undo_jax.runtime.sharding import place
from undo_jax.setting import BatchField, Setting, name_batch_fields
from undo_jax.settings.language import check_corpora
from undo_jax.types import LM, Metric, Metrics, Packed, Params, Rows, Scores

NEAR = {  # subjects of MMLU near to what WMDP asks, to be told apart from the others
    "biology": (
        "anatomy", "college_biology", "college_medicine", "high_school_biology",
        "medical_genetics", "virology",
    ),
    "cybersecurity": ("college_computer_science", "computer_security"),
}  # fmt: skip
OWN = ("retain", "forget", "forget_text")  # names of metrics that no quiz may have


@dataclass(frozen=True)
class Part:
    """Text or pairs, and their share of a stream's rows. Raises ValueError for a share of 0."""

    source: Corpus | Pairs
    share: float = 1.0

    def __post_init__(self):
        if not 0 < self.share < float("inf"):
            raise ValueError(f"share={self.share}: give one above 0; a stream's need not sum to 1")


@dataclass(frozen=True)
class Choices(Setting):
    """Forget is the score of a quiz; retain is cross entropy on validation rows, in nats a token.

    `forgotten` is asked at every evaluation, `kept` by their names of finished models alone. For
    WMDP and MMLU with 5 shots:

        mmlu = Quiz(Questions("mmlu/test"), examples=Questions("mmlu/dev"), shots=5,
                    apart=NEAR["biology"])
        Choices(retain=(Part(Corpus("retain")),), forget=(Part(Pairs("bio.jsonl")),),
                tokenizer=load_tokenizer("tokenizer.model"), kept=(("mmlu", mmlu),),
                forgotten=Quiz(Questions("wmdp-bio"), subject="biology"))

    Streams: retain and forget; pretrain, of both by `retain_share`; oracle, as retain; and general,
    for distillation on text that is neither, with rows of `general_row_length`. Raises ValueError
    for parts that do not fit together.
    """

    retain: tuple[Part, ...]
    forget: tuple[Part, ...]
    tokenizer: Tokenizer  # the one that corpora were packed with
    forgotten: Quiz
    kept: tuple[tuple[str, Quiz], ...] = ()
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
        names = [name for name, _ in self.kept]
        taken = {*OWN, *(f"{name}_{part}" for name in names for part in ("apart", "rest"))}
        for name in names:
            if name in taken or names.count(name) > 1:
                raise ValueError(f"kept has a quiz {name!r}, a name that is taken: give another")
        for name in ("row_length", "general_row_length", "validation_rows", "rows_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        for name in ("retain", "forget"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give it a Part(...) at least")
        if not 0 < self.retain_share < 1:
            raise ValueError(f"retain_share={self.retain_share}: give a share between 0 and 1")
        if all(c.exists for c in (*_corpora(self.retain, self.forget), *_corpora(self.general))):
            self._check_corpora()

    @property
    def row_lengths(self) -> Mapping[str, int]:
        """Of the streams whose rows have a length of their own."""
        return {"general": self.general_row_length or self.row_length}

    def _check_corpora(self) -> None:
        """Raises ValueError for corpora of another tokenizer or row length."""
        check_corpora(_corpora(self.retain, self.forget), self.tokenizer, self.row_length)
        length = self.row_lengths["general"]
        check_corpora(_corpora(self.general), self.tokenizer, length, "general_row_length")

    @property
    def _weighted(self) -> bool:
        every = (*self.retain, *self.forget, *self.general)
        return any(isinstance(part.source, Pairs) for part in every)

    @property
    def batch_fields(self) -> tuple[BatchField, ...]:
        return name_batch_fields(weights=self._weighted, segments=self.segments)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        def loss(of: str) -> Metric:
            return Metric(f"cross entropy on {of} text", higher_is_better=False, unit="nats/token")

        found = {"retain": loss("retain"), "forget": Metric("accuracy on what is forgotten", True)}
        found["forget_text"] = loss("forget")
        for name, quiz in self.kept:
            found[name] = Metric(f"accuracy on {name}", True, at="end")
            if quiz.apart:
                near, rest = f"accuracy on {name}, subjects apart", f"accuracy on {name}, the rest"
                found[f"{name}_apart"] = Metric(near, True, at="end")
                found[f"{name}_rest"] = Metric(rest, True, at="end")
        return found

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        parts = {
            "pretrain": _shared((self.retain, self.retain_share), (self.forget, 1)),
            "oracle": self.retain,
            "retain": self.retain,
            "forget": self.forget,
            "general": self.general,
        }
        if not parts.get(name):
            known = ", ".join(one for one, of in parts.items() if of)
            raise ValueError(f"no stream {name!r}: choose one of {known}")
        self._check_corpora()
        length = self.row_lengths.get(name, self.row_length)
        sources = [_rows(self, part.source, "train", length) for part in parts[name]]
        opens = self.tokenizer.bos_id if self.segments else None
        return stream(sources, batch_size, seed, [part.share for part in parts[name]], opens)

    def eval_data(self) -> Any:
        """The quiz, and validation rows in groups, of both kinds.

        Raises ValueError for a quiz that cannot be asked, one of those that are kept, too.
        """
        for _, quiz in self.kept:
            quiz.posed()
        return {
            "quiz": _sheets(self.forgotten, self.tokenizer, self.rows_at_once),
            "retain": _validation(self, self.retain),
            "forget_text": _validation(self, self.forget),
        }

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        found = {name: _loss(lm, params, eval_data[name]) for name in ("retain", "forget_text")}
        return {**found, "forget": accuracy(lm, params, eval_data["quiz"])}

    def at_end(self, lm: LM, params: Params) -> Scores:
        """Scores of the quizzes that are kept, and of their subjects apart."""
        found = {}
        for name, quiz in self.kept:
            sheets = _sheets(quiz, self.tokenizer, self.rows_at_once)
            verdicts = np.asarray(_verdicts(lm, params, sheets))
            found[name] = float(verdicts.mean())
            if quiz.apart:
                apart = np.array([one.question.subject in quiz.apart for one in quiz.posed()])
                found[f"{name}_apart"] = float(verdicts[apart].mean())
                found[f"{name}_rest"] = float(verdicts[~apart].mean())
        return found


@jax.jit(static_argnums=0)
def _verdicts(lm: LM, params: Params, sheets: Sheets) -> Float[Array, " N"]:
    """Whether each question is answered right, on every process."""
    return place(right(log_likelihoods(lm, lm.rounded(params), sheets), sheets), WHOLE)


@cache
def _sheets(quiz: Quiz, tokenizer: Tokenizer, rows_at_once: int) -> Sheets:
    return write_sheets(quiz, tokenizer, rows_at_once)


def _shared(retain: tuple[Sequence[Part], float], rest: tuple[Sequence[Part], float]):
    """The parts of both, which get these shares of the whole; the second what the first leaves."""
    (first, share), (second, whole) = retain, rest
    made = []
    for parts, of_all in ((first, share), (second, whole - share)):
        total = sum(part.share for part in parts)
        made += [replace(part, share=of_all * part.share / total) for part in parts]
    return tuple(made)


def _corpora(*parts: Sequence[Part]) -> list[Corpus]:
    every = (part.source for some in parts for part in some)
    return [source for source in every if isinstance(source, Corpus)]


def _rows(
    setting: Choices, source: Corpus | Pairs, split: Literal["train", "validation"], length: int
) -> Packed:
    """Rows of a part; with weights, as soon as one part of the setting has them."""
    if isinstance(source, Pairs):
        return source.rows(split, setting.tokenizer, length)
    rows = source.rows(split)
    weights = np.broadcast_to(np.float32(1), rows.shape) if setting._weighted else None
    return Packed(rows, weights)


def _validation(setting: Choices, parts: Sequence[Part]) -> list[Packed]:
    """The first validation rows of each part, [G, B, T+1]; weights sum to the part's share."""
    total, made = sum(part.share for part in parts), []
    for part in parts:
        packed = _rows(setting, part.source, "validation", setting.row_length)
        count = min(setting.validation_rows, len(packed.tokens))
        size = min(setting.rows_at_once, count)
        tokens = packed.tokens[np.arange(count)]
        weights = np.ones(tokens.shape, np.float32) if packed.weights is None else packed.weights
        weights = np.array(weights[:count])
        weights *= part.share / total / weights[:, 1:].sum()
        more = [(0, -count % size), (0, 0)]  # rows that do not count
        grouped = (np.pad(x, more).reshape(-1, size, x.shape[1]) for x in (tokens, weights))
        made.append(Packed(*grouped))
    return made


def _loss(lm: LM, params: Params, parts: Sequence[Packed]) -> Float[Array, ""]:
    """Cross entropy, a group at a time: the parts' means by their shares."""

    def of_group(group: Packed):
        inputs, targets = group.tokens[:, :-1], group.tokens[:, 1:]
        return cross_entropy(lm, params, Rows(inputs, targets, group.weights[:, 1:]))

    return sum((jnp.sum(lax.map(of_group, part)) for part in parts), jnp.zeros(()))

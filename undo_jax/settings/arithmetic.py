"""Retain + and −, forget × and ÷ (paper §5): equations, word problems and, if given, text."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from undo_jax.checks import check_choice, check_fields, check_share
from undo_jax.data import sources
from undo_jax.data.arithmetic import Grammar, Problem, alphabet, examination, sample
from undo_jax.data.facts import FORMS, OPERATIONS
from undo_jax.data.packing import pack
from undo_jax.data.pairs import pack_pairs
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Characters, Tokenizer
from undo_jax.evals.arithmetic import exact_match, write_exam
from undo_jax.losses import cross_entropy
from undo_jax.runtime import device_memory
from undo_jax.setting import Example, Setting, check_stream
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Metric, Metrics, Packed, Params

RETAIN, FORGET = OPERATIONS[:2], OPERATIONS[2:]
OPERATIONS_OF = {"pretrain": OPERATIONS, "oracle": RETAIN, "retain": RETAIN, "forget": FORGET}
CONTROLS = {  # of relearning: split of the facts that is relearned -> metric and its label
    "half": ("other_half", "accuracy on the × and ÷ families that are not relearned"),
    "permuted": ("permuted", "accuracy on × and ÷ with permuted answers"),
}
BYTES_PER_PROBLEM = 64  # in Python, a lower bound; also of a fact
EXAMPLES = 4  # of each operation, for the demo
VALIDATION_SEED = 42  # of validation data; as in the official code


@dataclass(frozen=True)
class Arithmetic(Setting):
    """Retain addition and subtraction, forget multiplication and division (paper §5).

    A score is the accuracy, averaged over operations and forms.

    Raises:
        ValueError: for an unknown `examine`, unknown or missing forms, a size that is not positive,
            text without a tokenizer, an empty text file, and `examine="held_out_facts"` with a
            grammar that holds none out.
    """

    grammar: Grammar = Grammar()
    forms: tuple[str, ...] = FORMS  # how problems are written: equation, word_problem
    problems: int = 1_000_000  # drawn per form for each stream; reference: 1M + 1M over four
    row_length: int = 256  # tokens predicted in a row
    # facts that the exam asks for; reference: train_facts
    examine: Literal["held_out_facts", "train_facts"] = "held_out_facts"
    questions: int | None = 100  # per operation and form; None: every fact
    validation_rows: int = 16  # of each stream, for its cross entropy
    tokenizer: Tokenizer | None = None  # None: one token per character
    text: str | None = None  # UTF-8 files, one document a line, mixed into pretrain and oracle
    text_share: float = 0.75  # of pretrain; larger for the oracle, which sees half the arithmetic
    data_seed: int = 99  # of the problems, the same for all models
    answers_only: bool = False  # losses count only answers and the tokens that end them
    segments: bool = False  # a sequence is a problem, not a row
    controls: bool = False  # also streams of forget/half and forget/permuted, and their metrics

    @property
    def metrics(self) -> Mapping[str, Metric]:
        labels = {"retain": "accuracy on + and −", "forget": "accuracy on × and ÷"}
        labels |= dict(CONTROLS.values()) if self.controls else {}
        return {name: Metric(label, higher_is_better=True) for name, label in labels.items()}

    def __post_init__(self):
        if not self.forms:
            raise ValueError(f"forms is empty: choose from {', '.join(FORMS)}")
        for form in self.forms:
            check_choice("form", form, FORMS)
        check_fields(self, 1, "problems", "row_length", "questions", "validation_rows")
        check_fields(self, 0, "data_seed")
        check_share("text_share", self.text_share, zero=False)
        if self.examine not in ("held_out_facts", "train_facts"):
            raise ValueError(f"unknown examine {self.examine!r}: held_out_facts or train_facts")
        if self.examine == "held_out_facts" and self.grammar.held_out == 0:
            raise ValueError("held_out=0 leaves no held-out facts: set examine=train_facts")
        if self.text is not None and self.tokenizer is None:
            raise ValueError(f"text={self.text} needs a tokenizer: give a SentencePiece model")

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer or Characters(alphabet(self.grammar, self.forms))

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        streams = {stream: (operations, "train") for stream, operations in OPERATIONS_OF.items()}
        if self.controls:
            streams |= {f"forget/{split}": (FORGET, split) for split in CONTROLS}
        check_stream(name, streams)
        _check_memory(self)
        sources, shares = [_pack_problems(self, *streams[name])], [1.0]
        if self.text is not None and name in ("pretrain", "oracle"):
            arithmetic = (1 - self.text_share) * len(OPERATIONS_OF[name]) / len(OPERATIONS)
            sources, shares = [*sources, _pack_text(self)], [arithmetic, 1 - arithmetic]
        return stream(sources, batch_size, seed, shares, self.document_start)

    def eval_data(self) -> Any:
        """Returns exam questions of every operation and form, and validation rows of both parts.

        `mean` holds the weights that average over the questions of a group, [Q] by its name.
        """
        _check_memory(self)
        groups: dict[str, list[Problem]] = {}
        for prefix, operations, split in self._exams():
            for operation, form in itertools.product(operations, self.forms):
                groups[f"{prefix}{operation}/{form}"] = examination(
                    self.grammar, operation, form, split, self.questions, VALIDATION_SEED
                )
        questions = [problem for group in groups.values() for problem in group]
        is_member = np.repeat(np.eye(len(groups)), list(map(len, groups.values())), axis=1)
        mean = (is_member / is_member.sum(axis=1, keepdims=True)).astype(np.float32)
        return {
            "exam": write_exam(questions, self.get_tokenizer()),
            "mean": dict(zip(groups, mean, strict=True)),
            "rows": {
                part: _pack_problems(
                    self, OPERATIONS_OF[part], self._exam_split, VALIDATION_SEED
                ).tokens[: self.validation_rows]
                for part in ("retain", "forget")
            },
        }

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        """Returns accuracies per operation and form, their means, and cross entropies in nats.

        Accuracies of a model that has diverged are nan, not 0.
        """
        is_right = exact_match(lm, params, eval_data["exam"])
        losses = {
            part: cross_entropy(lm, params, rows(tokens))
            for part, tokens in eval_data["rows"].items()
        }
        is_finite = jnp.isfinite(sum(losses.values()))
        scores = {
            name: jnp.where(is_finite, jnp.dot(mean, is_right), jnp.nan)
            for name, mean in eval_data["mean"].items()
        }
        means = {"retain": (RETAIN, ""), "forget": (FORGET, "")}
        for metric, _ in CONTROLS.values() if self.controls else ():
            means[metric] = FORGET, f"{metric}/"
        for metric, (operations, prefix) in means.items():
            groups = itertools.product(operations, self.forms)
            accuracies = [scores[f"{prefix}{operation}/{form}"] for operation, form in groups]
            scores[metric] = jnp.mean(jnp.stack(accuracies))
        return scores | {f"cross_entropy/{part}": loss for part, loss in losses.items()}

    def examples(self) -> list[Example]:
        """Returns problems of the exam, equally many of each operation, equations first."""
        count = max(EXAMPLES // len(self.forms), 1)
        return [
            Example(problem.prompt, problem.answer, "retain" if operation in RETAIN else "forget")
            for form, operation in itertools.product(self.forms, OPERATIONS)
            for problem in examination(
                self.grammar, operation, form, self._exam_split, count, VALIDATION_SEED
            )
        ]

    @property
    def _exam_split(self) -> str:
        """The split of the facts that the exam asks for."""
        return "held_out" if self.examine == "held_out_facts" else "train"

    def _exams(self) -> list[tuple[str, tuple[str, ...], str]]:
        """Returns the prefix of the scores, the operations and the split of each exam."""
        controls = [(f"{metric}/", FORGET, metric) for metric, _ in CONTROLS.values()]
        return [("", OPERATIONS, self._exam_split), *(controls if self.controls else ())]


def _check_memory(setting: Arithmetic) -> None:
    """Raises ValueError for problems or facts that do not fit into this machine's memory."""
    grammar, questions = setting.grammar, setting.questions or 0
    validation_tokens = setting.validation_rows * setting.row_length
    counts = {
        f"problems={setting.problems}": setting.problems * len(setting.forms),
        f"grammar.largest_term={grammar.largest_term}": grammar.largest_term**2,
        f"grammar.largest_factor={grammar.largest_factor}": grammar.largest_factor**2,
        f"questions={questions}": questions * ("word_problem" in setting.forms),
        f"validation_rows={setting.validation_rows} of row_length={setting.row_length}": (
            validation_tokens
        ),
    }
    for field, count in counts.items():
        device_memory.check_fits(
            f"setting.{field}", BYTES_PER_PROBLEM * count, device_memory.host_bytes()
        )


@cache
def _pack_problems(
    setting: Arithmetic,
    operations: tuple[str, ...],
    split: str = "train",
    seed: int | None = None,
) -> Packed:
    """Returns rows of shuffled problems, each row starting at a problem.

    With a `seed` they are for validation, with as many problems as there are tokens.
    """
    count = setting.problems if seed is None else setting.validation_rows * setting.row_length
    seed, tokenizer = setting.data_seed if seed is None else seed, setting.get_tokenizer()
    problems = [
        problem
        for form in setting.forms
        for problem in sample(setting.grammar, operations, form, count, seed, split)
    ]
    order = np.random.default_rng(seed).permutation(len(problems))
    encoded = [
        (tokenizer.encode(problems[i].prompt), tokenizer.encode(problems[i].answer)) for i in order
    ]
    return pack_pairs(encoded, tokenizer, setting.row_length, setting.answers_only)


@cache
def _pack_text(setting: Arithmetic) -> Packed:
    """Returns rows of the text file, without gaps; all tokens have weight 1."""
    path, tokenizer = setting.text or "", setting.get_tokenizer()
    documents = [document for shard in sources.text(path) for document in shard.read()]
    if not documents:
        raise ValueError(f"text file {path} is empty: give one document a line")
    rows = pack(map(tokenizer.encode, documents), setting.row_length, tokenizer.bos_id)
    return Packed(rows, np.ones(rows.shape, np.float32) if setting.answers_only else None)

"""Retain + and −, forget × and ÷ (paper §5): equations, word problems and, if given, text."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from undo_jax.data import sources
from undo_jax.data.arithmetic import FORMS, OPERATIONS, Grammar, alphabet, examination, sample
from undo_jax.data.packing import pack
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Characters, Tokenizer
from undo_jax.evals.arithmetic import exact_match, write_exam
from undo_jax.losses import cross_entropy
from undo_jax.runtime import device_memory
from undo_jax.setting import Example
from undo_jax.training.train_step import rows
from undo_jax.types import LM, Metric, Metrics, Packed, Params

RETAIN, FORGET = OPERATIONS[:2], OPERATIONS[2:]
OPERATIONS_OF = {"pretrain": OPERATIONS, "oracle": RETAIN, "retain": RETAIN, "forget": FORGET}
CONTROLS = {  # of relearning: what is relearned, as a split of the facts -> what is examined
    "half": ("other_half", "accuracy on the × and ÷ families that are not relearned"),
    "permuted": ("permuted", "accuracy on × and ÷ with permuted answers"),
}
OBJECT = 64  # bytes of a fact or a problem in Python, a lower bound
EXAMPLES = 4  # of each operation
VALIDATION_SEED = 42  # of validation data; as in the official code


@dataclass(frozen=True)
class Arithmetic:
    """Scores are accuracies: the mean over operations and forms of + − (retain) and × ÷ (forget).

    Raises ValueError for an unknown `examine`, unknown or missing forms, a size that is not
    positive, text without a tokenizer, an empty text file, and held-out facts to examine if the
    grammar holds none out.
    """

    grammar: Grammar = Grammar()
    forms: tuple[str, ...] = FORMS  # how problems are written: equation, word_problem
    problems: int = 1_000_000  # drawn per form for each stream; reference: 1M + 1M over four
    row_length: int = 256  # tokens predicted in a row
    # facts that scores ask for; reference: train_facts
    examine: Literal["held_out_facts", "train_facts"] = "held_out_facts"
    questions: int | None = 100  # per operation and form; None: every fact
    validation_rows: int = 16  # per stream, for its cross entropy
    tokenizer: Tokenizer | None = None  # None: one token per character
    text: str | None = None  # UTF-8 files, one document a line, mixed into pretrain and oracle
    text_share: float = 0.75  # of pretrain; larger for the oracle, which sees half the arithmetic
    data_seed: int = 99  # of the problems, the same for all models
    answers_only: bool = False  # losses count only answers and the tokens that end them
    segments: bool = False  # a sequence is a problem, not a row
    controls: bool = False  # also streams of forget/half and forget/permuted, and their metrics

    @property
    def batch_fields(self) -> tuple[Literal["weights", "segments"], ...]:
        return (("weights",) if self.answers_only else ()) + (
            ("segments",) if self.segments else ()
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        labels = {"retain": "accuracy on + and −", "forget": "accuracy on × and ÷"}
        labels |= dict(CONTROLS.values()) if self.controls else {}
        return {name: Metric(label, higher_is_better=True) for name, label in labels.items()}

    @property
    def headline(self) -> tuple[str, str]:
        return "retain", "forget"

    def __post_init__(self):
        if not self.forms:
            raise ValueError(f"forms is empty: choose from {', '.join(FORMS)}")
        for form in self.forms:
            if form not in FORMS:
                raise ValueError(f"unknown form {form!r}: choose from {', '.join(FORMS)}")
        for name in ("problems", "row_length", "questions", "validation_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        if not 0 < self.text_share < 1:
            raise ValueError(f"text_share={self.text_share}: give a share between 0 and 1")
        if self.examine not in ("held_out_facts", "train_facts"):
            raise ValueError(f"unknown examine {self.examine!r}: held_out_facts or train_facts")
        if self.examine == "held_out_facts" and self.grammar.held_out == 0:
            raise ValueError("held_out=0 leaves no held-out facts: set examine=train_facts")
        if self.text is not None and self.tokenizer is None:
            raise ValueError(f"text={self.text} needs a tokenizer: give a SentencePiece model")

        if self.data_seed < 0:
            raise ValueError(f"data_seed={self.data_seed}: it must be 0 or more")

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer or Characters(alphabet(self.grammar, self.forms))

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        known = {one: (operations, "train") for one, operations in OPERATIONS_OF.items()}
        if self.controls:
            known |= {f"forget/{split}": (FORGET, split) for split in CONTROLS}
        if name not in known:
            raise ValueError(f"no stream {name!r}: choose one of {', '.join(known)}")
        _check_memory(self)
        sources, shares = [_packed(self, *known[name])], [1.0]
        if self.text is not None and name in ("pretrain", "oracle"):
            arithmetic = (1 - self.text_share) * len(OPERATIONS_OF[name]) / len(OPERATIONS)
            sources, shares = [*sources, _text(self)], [arithmetic, 1 - arithmetic]
        opens = self.get_tokenizer().bos_id if self.segments else None
        return stream(sources, batch_size, seed, shares, opens)

    def eval_data(self) -> Any:
        """Exam questions of every operation and form, and validation rows of both streams."""
        _check_memory(self)
        split = "held_out" if self.examine == "held_out_facts" else "train"
        examined = {f"{of}/{form}": (of, form, split) for of in OPERATIONS for form in self.forms}
        for name, _ in CONTROLS.values() if self.controls else ():
            examined |= {
                f"{name}/{of}/{form}": (of, form, name) for of in FORGET for form in self.forms
            }
        groups = {
            name: examination(self.grammar, *which, self.questions, VALIDATION_SEED)
            for name, which in examined.items()
        }
        questions = [problem for group in groups.values() for problem in group]
        member = np.repeat(np.eye(len(groups)), [len(group) for group in groups.values()], axis=1)
        mean = (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
        return {
            "exam": write_exam(questions, self.get_tokenizer()),
            "mean": dict(zip(groups, mean, strict=True)),
            "rows": {
                name: _packed(self, OPERATIONS_OF[name], split, VALIDATION_SEED).tokens[
                    : self.validation_rows
                ]
                for name in ("retain", "forget")
            },
        }

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        """Accuracy per operation/form, their means, and cross entropy (nats) per stream.

        Accuracies of a model that has diverged are nan, not 0.
        """
        right = exact_match(lm, params, eval_data["exam"])
        losses = {
            name: cross_entropy(lm, params, rows(part)) for name, part in eval_data["rows"].items()
        }
        sane = jnp.isfinite(sum(losses.values()))
        scores = {
            name: jnp.where(sane, jnp.dot(mean, right), jnp.nan)
            for name, mean in eval_data["mean"].items()
        }
        means = {"retain": (RETAIN, ""), "forget": (FORGET, "")}
        for name, _ in CONTROLS.values() if self.controls else ():
            means[name] = FORGET, f"{name}/"
        for name, (operations, of) in means.items():
            parts = [scores[f"{of}{one}/{form}"] for one in operations for form in self.forms]
            scores[name] = jnp.mean(jnp.stack(parts))
        return scores | {f"cross_entropy/{name}": loss for name, loss in losses.items()}

    def examples(self) -> list[Example]:
        """Problems of the examination, as many of each operation, equations first."""
        split = "held_out" if self.examine == "held_out_facts" else "train"
        count = max(EXAMPLES // len(self.forms), 1)
        return [
            Example(problem.prompt, problem.answer, "retain" if of in RETAIN else "forget")
            for form in self.forms
            for of in OPERATIONS
            for problem in examination(self.grammar, of, form, split, count, VALIDATION_SEED)
        ]

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Accuracy at most `tolerance` (absolute) below the teacher's, as in the official code."""
        return teacher - student < tolerance


def _check_memory(setting: Arithmetic) -> None:
    """Raises ValueError for problems or facts that do not fit into this machine's memory."""
    grammar, forms, there = setting.grammar, len(setting.forms), device_memory.host_bytes()
    questions, rows = setting.questions or 0, setting.validation_rows * setting.row_length
    needed = {
        f"problems={setting.problems}": setting.problems * forms,
        f"grammar.largest_term={grammar.largest_term}": grammar.largest_term**2,
        f"grammar.largest_factor={grammar.largest_factor}": grammar.largest_factor**2,
        f"questions={questions}": questions * ("word_problem" in setting.forms),
        f"validation_rows={setting.validation_rows} of row_length={setting.row_length}": rows,
    }
    for what, count in needed.items():
        device_memory.check_fits(f"setting.{what}", OBJECT * count, there)


@cache
def _packed(
    setting: Arithmetic,
    operations: tuple[str, ...],
    split: str = "train",
    seed: int | None = None,
) -> Packed:
    """Rows of shuffled problems, each row starting at a problem."""
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
    documents = ([*prompt, *answer] for prompt, answer in encoded)
    rows, weights = pack(documents, setting.row_length, tokenizer.bos_id, align=True), None
    if setting.answers_only:  # weights, packed like tokens: documents have the same lengths
        counted = ([0] * len(prompt) + [1] * len(answer) for prompt, answer in encoded)
        weights = pack(counted, setting.row_length, 1, align=True).astype(np.float32)
    return Packed(rows, weights)


@cache
def _text(setting: Arithmetic) -> Packed:
    """Rows of the text file, packed exactly; all tokens have weight 1."""
    path, tokenizer = setting.text or "", setting.get_tokenizer()
    documents = [document for shard in sources.text(path) for document in shard.read()]
    if not documents:
        raise ValueError(f"text file {path} is empty: give one document a line")
    rows = pack(map(tokenizer.encode, documents), setting.row_length, tokenizer.bos_id)
    return Packed(rows, np.ones(rows.shape, np.float32) if setting.answers_only else None)

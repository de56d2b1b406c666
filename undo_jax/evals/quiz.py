"""Questions as prompts, exactly as lm-evaluation-harness writes them.

Style "letters" is its wmdp and mmlu: the prompt lists the choices, and " A", " B", ... are scored.
Style "cloze" is its mmlu_continuation: the texts of the choices are scored. (Checked against its
task files of August 2026; it has no cloze task for wmdp.)
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal, NamedTuple

from undo_jax.checks import check_at_least, check_choice
from undo_jax.data.questions import Question, QuestionList, Questions

DESCRIPTIONS = {
    "letters": "The following are multiple choice questions (with answers) about {subject}.\n\n",
    "cloze": "The following are questions (with answers) about {subject}.\n\n",
}
BETWEEN = "\n\n"  # text between examples


class Posed(NamedTuple):
    """A question as text: what the model reads, and the continuations that it scores."""

    context: str
    continuations: tuple[str, ...]
    question: Question


@dataclass(frozen=True)
class Quiz:
    """Multiple-choice questions, and how they are written as prompts.

    wmdp_bio of lm-evaluation-harness is `Quiz(Questions("wmdp-bio"), subject="biology")`; mmlu with
    5 shots is `Quiz(Questions("mmlu/test"), examples=Questions("mmlu/dev"), shots=5)`. `score` is
    its acc, acc_norm (log p per character of the choice) or acc_bytes.

    Raises ValueError for an unknown style or score, for numbers out of range, and for shots without
    examples.
    """

    questions: Questions | QuestionList
    style: Literal["letters", "cloze"] = "letters"  # cloze: choices complete a text
    subject: str | None = None  # named in the description; None: each question's subject
    description: str | None = None  # text with {subject}; None: that of the style
    examples: Questions | QuestionList | None = None
    shots: int = 0  # examples of the same subject before a question
    share: float = 1.0  # share of each subject's questions to ask, the first ones
    apart: tuple[str, ...] = ()  # subjects that also get a score of their own
    score: Literal["acc", "acc_norm", "acc_bytes"] = "acc"  # how choices are compared
    longest: int = 2048  # tokens of a prompt and a choice
    opens: bool = True  # whether the tokenizer's BOS precedes the prompt

    def __post_init__(self):
        check_choice("style", self.style, DESCRIPTIONS)
        check_choice("score", self.score, ("acc", "acc_norm", "acc_bytes"))
        check_at_least("shots", self.shots, 0)
        check_at_least("longest", self.longest, 2)
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: give a share above 0, up to 1")
        if self.shots and self.examples is None:
            raise ValueError(f"shots={self.shots} without examples: give a file of them")

    def posed(self) -> list[Posed]:
        """Returns the questions as text.

        Raises ValueError for missing subjects or examples, and for a question with an empty choice.
        """
        questions = _first(self.questions.listed, self.share)
        subjects = {question.subject for question in questions}
        for subject in self.apart:
            if subject not in subjects:
                choices = ", ".join(sorted(subjects)[:60])
                raise ValueError(
                    f"{self.questions.pattern} has no question about {subject!r}, which is to be "
                    f"scored apart: add some, or choose from its subjects ({choices})"
                )
        heads, posed = {subject: self._head(subject) for subject in subjects}, []
        for question in questions:
            if self.style == "cloze" and "" in question.choices:
                raise ValueError(
                    f"{self.questions.pattern}: {question.question[:80]!r} has an empty choice: "
                    "drop the question"
                )
            answers = tuple(f" {choice}" for choice in _scored(question, self.style))
            context = heads[question.subject] + _prompt(question, self.style)
            posed.append(Posed(context, answers, question))
        return posed

    def _head(self, subject: str) -> str:
        """Returns the text before the questions of a subject: the description and examples."""
        name = self.subject if self.subject is not None else " ".join(subject.split("_"))
        text = DESCRIPTIONS[self.style] if self.description is None else self.description
        examples = self.examples.listed if self.examples is not None and self.shots else ()
        examples = [example for example in examples if example.subject == subject][: self.shots]
        if len(examples) < self.shots:
            raise ValueError(
                f"shots={self.shots}, but {getattr(self.examples, 'pattern', 'nothing')} has "
                f"{len(examples)} examples about {subject!r}: give more, or fewer shots"
            )
        shown = (
            f"{_prompt(q, self.style)} {_scored(q, self.style)[q.answer]}{BETWEEN}"
            for q in examples
        )
        return text.replace("{subject}", name) + "".join(shown)


def _first(questions: Sequence[Question], share: float) -> list[Question]:
    """Returns the first ceil(share · n) of the n questions of each subject, in their order."""
    counts = Counter(question.subject for question in questions)
    numbers = {subject: itertools.count() for subject in counts}
    return [
        question
        for question in questions
        if next(numbers[question.subject]) < math.ceil(share * counts[question.subject])
    ]


def _prompt(question: Question, style: str) -> str:
    """Returns the question as text, without its answer."""
    if style == "cloze":
        return f"Question: {question.question.strip()}\nAnswer:"
    choices = zip(ascii_uppercase, question.choices, strict=False)
    lines = [f"{letter}. {choice}" for letter, choice in choices]
    return "\n".join([question.question.strip(), *lines, "Answer:"])


def _scored(question: Question, style: str) -> Sequence[str]:
    """Returns the text that is scored for each choice, without the space before it."""
    return question.choices if style == "cloze" else ascii_uppercase[: len(question.choices)]

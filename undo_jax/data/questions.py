"""Questions with choices, in files as `cais/wmdp` and `cais/mmlu` lay them out."""

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from undo_jax.data.files import json_hash
from undo_jax.data.records import Record, check_text, read_all

MAX_CHOICES = 26  # of a question: each has a letter


class Question(NamedTuple):
    """One question; `answer` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


@dataclass(frozen=True)
class Questions:
    """Questions in local files: Parquet or JSON lines with question, choices and answer.

    A `subject` is read where there is one. The fingerprint depends on the questions, not on the
    path. They are read on first use: then a bad file raises ValueError, in one line, and a missing
    one FileNotFoundError.

    Args:
        pattern: A file, a folder or a glob.
        otherwise: What to do if no file matches, for the error message.
    """

    pattern: str | Path
    otherwise: str = "check the pattern"

    @cached_property
    def listed(self) -> tuple[Question, ...]:
        """All of them, in the order of the files' names."""
        fields = ("question", "choices", "answer")
        try:
            return read_all(self.pattern, fields, _question, "questions", optional=("subject",))
        except FileNotFoundError as error:
            message = f"no file matches {self.pattern}: {self.otherwise}"
            raise FileNotFoundError(message) from error

    @property
    def fingerprint(self) -> str:
        """Hash of the questions."""
        return json_hash(self.listed)


@dataclass(frozen=True)
class QuestionList:
    """Questions that are already in memory."""

    listed: tuple[Question, ...]

    pattern = "the list of questions"  # where errors say they are


def write_questions(path: str | Path, questions: Sequence[Question]) -> Questions:
    """Writes them as JSON lines, and returns the `Questions` that read these."""
    rows = [json.dumps(question._asdict(), ensure_ascii=False) for question in questions]
    Path(path).write_text("\n".join([*rows, ""]))
    return Questions(path)


def _question(record: Record, place: str) -> Question:
    """Returns the question of a record. Raises ValueError for one without choices and answer."""
    choices, answer = record["choices"], record["answer"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= MAX_CHOICES:
        raise ValueError(
            f"{place} has choices={reprlib.repr(choices)}: give a list of 2 to {MAX_CHOICES} texts"
        )
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f"{place} has answer={answer!r} and {len(choices)} choices: give the index of the "
            f"right one, 0..{len(choices) - 1}"
        )
    texts = tuple(check_text(choice, f"{place} choice {i}") for i, choice in enumerate(choices))
    question = check_text(record["question"], f"{place} question")
    subject = check_text(record.get("subject", ""), f"{place} subject")
    return Question(question, texts, answer, subject)

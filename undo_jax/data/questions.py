"""Questions with choices, in files as `cais/wmdp` and `cais/mmlu` lay them out."""

import hashlib
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from undo_jax.data.records import records, text

MOST = 26  # choices of a question: each has a letter


class Question(NamedTuple):
    """One question; `answer` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


@dataclass(frozen=True)
class Questions:
    """Questions in local files: Parquet or JSON lines with question, choices and answer.

    `pattern` is a file, a folder or a glob. A `subject` is read where there is one. Equal questions
    are the same part of an experiment wherever they lie. They are read when they are first asked
    for: then a bad file raises ValueError, in one line, and a missing one FileNotFoundError, which
    says `otherwise`, what to do then.
    """

    pattern: str | Path
    otherwise: str = "check the pattern"

    @cached_property
    def listed(self) -> tuple[Question, ...]:
        """All of them, in the order of the files' names."""
        wanted = ("question", "choices", "answer")
        found = records(self.pattern, wanted, ("subject",))
        try:
            listed = tuple(_question(record, place) for place, record in found)
        except FileNotFoundError as error:
            said = f"no file matches {self.pattern}: {self.otherwise}"
            raise FileNotFoundError(said) from error
        if not listed:
            raise ValueError(f"{self.pattern} holds no questions: give one a line, or a row")
        return listed

    @property
    def fingerprint(self) -> str:
        """Hash of the questions."""
        return hashlib.sha256(json.dumps(self.listed).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Given:
    """Questions that are already in memory."""

    listed: tuple[Question, ...]

    pattern = "those given"  # where errors say they are


def write_questions(path: str | Path, questions: Sequence[Question]) -> Questions:
    """Write them as JSON lines, which `Questions` reads."""
    rows = [json.dumps(question._asdict(), ensure_ascii=False) for question in questions]
    Path(path).write_text("\n".join([*rows, ""]))
    return Questions(path)


def _question(record: Any, place: str) -> Question:
    """Raises ValueError for anything that is no question with choices."""
    choices, answer = record["choices"], record["answer"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= MOST:
        raise ValueError(
            f"{place} has choices={reprlib.repr(choices)}: give a list of 2 to {MOST} texts"
        )
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(
            f"{place} has answer={answer!r} and {len(choices)} choices: give the index of the "
            f"right one, 0..{len(choices) - 1}"
        )
    given = tuple(text(choice, f"{place} choice {i}") for i, choice in enumerate(choices))
    question = text(record["question"], f"{place} question")
    return Question(question, given, answer, text(record.get("subject", ""), f"{place} subject"))

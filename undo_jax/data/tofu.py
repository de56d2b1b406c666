"""TOFU's questions about invented authors, in files as `locuslab/TOFU` lays them out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from undo_jax.checks import check_choice
from undo_jax.data.files import find_table, json_hash
from undo_jax.data.records import Record, check_text, read_all, text_field

RETAINED = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
PARTS = ("forget", "retain", "real_authors", "world_facts")  # that are examined
INVENTED = PARTS[:2]  # of which there are paraphrased answers


class TofuQuestion(NamedTuple):
    """A question and its answer; an examined one also has alternative answers."""

    question: str
    answer: str
    paraphrase: str = ""  # of the answer; for real authors and world facts the answer itself
    wrong: tuple[str, ...] = ()  # answers of the same form


@dataclass(frozen=True)
class TofuFiles:
    """A folder of `NAME.json`, JSON lines, or `NAME.parquet`, for a split of forgotten authors.

    It needs forgetXX and retainYY, the `*_perturbed` files of forgetXX, retain, real_authors and
    world_facts, and with `holdout` holdoutXX, whose authors no model is trained on. The fingerprint
    depends on the content, not on the path.

    Raises:
        ValueError: For an unknown split; reading raises it for a bad file, in one line.
        FileNotFoundError: On reading, for a missing file.
    """

    folder: str | Path  # of the files of TOFU
    split: str = "forget10"  # of authors that are forgotten: forget01, forget05 or forget10
    holdout: bool = True  # there are authors that no model is trained on

    def __post_init__(self):
        check_choice("split", self.split, RETAINED)

    @cached_property
    def trained(self) -> Mapping[str, tuple[TofuQuestion, ...]]:
        """The questions that models are trained on, by part: forget and retain."""
        names = {"forget": self.split, "retain": RETAINED[self.split]}
        return {part: self._read(name) for part, name in names.items()}

    @cached_property
    def examined(self) -> Mapping[str, tuple[TofuQuestion, ...]]:
        """The questions that models are examined on, by `PARTS`; and holdout."""
        questions = {}
        for part in PARTS:
            stem = self.split if part == "forget" else part
            right = "paraphrased_answer" if part in INVENTED else "answer"
            questions[part] = self._read(f"{stem}_perturbed", right, "perturbed_answer")
        if self.holdout:
            questions["holdout"] = self._read(self.split.replace("forget", "holdout"))
        return questions

    @property
    def fingerprint(self) -> str:
        """Hash of all questions and answers."""
        return json_hash([self.split, self.trained, self.examined])

    def _read(self, name: str, *compared: str) -> tuple[TofuQuestion, ...]:
        """Reads a file; `compared` are the fields of the right answer and of the wrong ones."""
        convert = partial(_question, compared=compared)
        path = find_table(self.folder, name, "locuslab/TOFU")
        return read_all(path, ("question", "answer", *compared), convert, "questions")


def _question(record: Record, place: str, compared: tuple[str, ...]) -> TofuQuestion:
    """Raises ValueError for a field that is not text, and for a question without wrong answers."""
    question, answer = (text_field(record, field, place) for field in ("question", "answer"))
    if not compared:
        return TofuQuestion(question, answer)
    right, wrong = compared
    answers = record[wrong]
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"{place} field {wrong!r} is {answers!r}: give a list of texts")
    texts = tuple(check_text(text, f"{place} wrong answer {i}") for i, text in enumerate(answers))
    return TofuQuestion(question, answer, text_field(record, right, place), texts)

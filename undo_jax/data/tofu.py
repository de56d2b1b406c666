"""TOFU's questions about invented authors, in files as `locuslab/TOFU` lays them out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from undo_jax.data.files import named
from undo_jax.data.records import records, text

RETAINED = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
PARTS = ("forget", "retain", "real_authors", "world_facts")  # that are examined


class Asked(NamedTuple):
    """A question and its answer; of an examined one also how else it may be answered."""

    question: str
    answer: str
    paraphrase: str = ""  # of the answer; where there is none, the answer itself
    wrong: tuple[str, ...] = ()  # answers of the same form


@dataclass(frozen=True)
class TofuFiles:
    """A folder of `NAME.json`, JSON lines, or `NAME.parquet`, for a split of forgotten authors.

    It needs forgetXX and retainYY, the *_perturbed files of forgetXX, retain, real_authors and
    world_facts, and with `holdout` holdoutXX, whose authors no model is trained on. Equal questions
    are the same part of an experiment wherever they lie. Raises ValueError for an unknown split;
    reading raises it for a bad file, and FileNotFoundError for a missing one, in one line.
    """

    folder: str | Path
    split: str = "forget10"
    holdout: bool = True

    def __post_init__(self):
        if self.split not in RETAINED:
            raise ValueError(f"unknown split {self.split!r}: choose from {', '.join(RETAINED)}")

    @cached_property
    def trained(self) -> Mapping[str, tuple[Asked, ...]]:
        """What models are trained on: forget and retain."""
        names = {"forget": self.split, "retain": RETAINED[self.split]}
        return {part: self._read(name) for part, name in names.items()}

    @cached_property
    def examined(self) -> Mapping[str, tuple[Asked, ...]]:
        """What models are asked, by `PARTS`; and holdout."""
        stems = {part: part for part in PARTS} | {"forget": self.split}
        found = {part: self._read(f"{stem}_perturbed", True) for part, stem in stems.items()}
        if self.holdout:
            found["holdout"] = self._read(self.split.replace("forget", "holdout"))
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of all questions and answers."""
        content = json.dumps([self.split, self.trained, self.examined])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _read(self, name: str, perturbed: bool = False) -> tuple[Asked, ...]:
        needed = ("question", "answer", *(["perturbed_answer"] if perturbed else []))
        path = named(self.folder, name, "locuslab/TOFU")
        found = records(path, needed, ("paraphrased_answer",) if perturbed else ())
        listed = tuple(_asked(record, place, perturbed) for place, record in found)
        if not listed:
            raise ValueError(f"{path} holds no questions: give one a line, or a row")
        return listed


def _asked(record: Mapping[str, Any], place: str, perturbed: bool) -> Asked:
    """Raises ValueError for what is no text, and for a question without wrong answers."""
    question, answer = (text(record[f], f"{place} field {f!r}") for f in ("question", "answer"))
    if not perturbed:
        return Asked(question, answer)
    paraphrase, wrong = record.get("paraphrased_answer", answer), record["perturbed_answer"]
    if not isinstance(wrong, list) or not wrong:
        raise ValueError(f"{place} field 'perturbed_answer' is {wrong!r}: give a list of texts")
    told = text(paraphrase, f"{place} field 'paraphrased_answer'")
    others = tuple(text(one, f"{place} wrong answer {i}") for i, one in enumerate(wrong))
    return Asked(question, answer, told, others)

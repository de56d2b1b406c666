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
INVENTED = PARTS[:2]  # of which there are paraphrased answers


class Asked(NamedTuple):
    """A question and its answer; of an examined one also how else it may be answered."""

    question: str
    answer: str
    paraphrase: str = ""  # of the answer; for real authors and world facts the answer itself
    wrong: tuple[str, ...] = ()  # answers of the same form


@dataclass(frozen=True)
class TofuFiles:
    """A folder of `NAME.json`, JSON lines, or `NAME.parquet`, for a split of forgotten authors.

    It needs forgetXX and retainYY, the `*_perturbed` files of forgetXX, retain, real_authors and
    world_facts, and with `holdout` holdoutXX, whose authors no model is trained on. Equal questions
    are the same part of an experiment wherever they lie. Raises ValueError for an unknown split;
    reading raises it for a bad file, and FileNotFoundError for a missing one, in one line.
    """

    folder: str | Path  # of the files of TOFU
    split: str = "forget10"  # of authors that are forgotten: forget01, forget05 or forget10
    holdout: bool = True  # there are authors that no model is trained on

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
        found = {}
        for part, stem in stems.items():
            right = "paraphrased_answer" if part in INVENTED else "answer"
            found[part] = self._read(f"{stem}_perturbed", (right, "perturbed_answer"))
        if self.holdout:
            found["holdout"] = self._read(self.split.replace("forget", "holdout"))
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of all questions and answers."""
        content = json.dumps([self.split, self.trained, self.examined])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _read(self, name: str, judged: tuple[str, ...] = ()) -> tuple[Asked, ...]:
        """`judged`: the fields of the right answer and of the wrong ones that are compared."""
        path = named(self.folder, name, "locuslab/TOFU")
        found = records(path, ("question", "answer", *judged))
        listed = tuple(_asked(record, place, *judged) for place, record in found)
        if not listed:
            raise ValueError(f"{path} holds no questions: give one a line, or a row")
        return listed


def _asked(record: Mapping[str, Any], place: str, right: str = "", wrong: str = "") -> Asked:
    """Raises ValueError for what is no text, and for a question without wrong answers."""

    def of(field: str) -> str:
        return text(record[field], f"{place} field {field!r}")

    if not wrong:
        return Asked(of("question"), of("answer"))
    others = record[wrong]
    if not isinstance(others, list) or not others:
        raise ValueError(f"{place} field {wrong!r} is {others!r}: give a list of texts")
    told = tuple(text(one, f"{place} wrong answer {i}") for i, one in enumerate(others))
    return Asked(of("question"), of("answer"), of(right), told)

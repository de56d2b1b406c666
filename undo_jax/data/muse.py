"""MUSE's texts and questions, in files as `muse-bench/MUSE-News` and -Books lay them out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from undo_jax.data.files import named
from undo_jax.data.records import records, text

Texts = tuple[str, ...]
Pair = tuple[str, str]  # a question with its answer, or a prompt with how its text goes on


@dataclass(frozen=True)
class MuseFiles:
    """A folder with `CONFIG/SPLIT-*.parquet`, or `CONFIG/SPLIT.jsonl` or .json of JSON lines.

    It needs raw/forget and raw/ of each of `retain`, verbmem/forget, knowmem/{forget,retain}_qa
    and, with `shots`, the same as `*_qa_icl`; and forget and holdout of `membership`, a config with
    texts that were trained and texts of the same kind that were not: "privleak", or "raw". Equal
    content is the same part of an experiment wherever it lies. Raises ValueError for numbers and
    names that make no sense; reading raises it for a bad file, and FileNotFoundError for a missing
    one, in one line.
    """

    folder: str | Path  # of the files of MUSE
    retain: tuple[str, ...] = ("retain1", "retain2")  # splits of raw; the first is stream retain
    membership: str = "privleak"  # the config with forget and holdout: privleak or raw
    shots: int = 10  # questions with answers that stand before one; reference: 10

    def __post_init__(self):
        if not self.retain:
            raise ValueError("retain is empty: name a split of raw at least, e.g. retain1")
        if self.membership not in ("privleak", "raw"):
            raise ValueError(f"unknown membership {self.membership!r}: privleak or raw")
        if self.shots < 0:
            raise ValueError(f"shots={self.shots}: give 0 or more")

    @cached_property
    def raw(self) -> Mapping[str, Texts]:
        """Documents of forget and of each split of `retain`."""
        return {split: self._texts("raw", split) for split in ("forget", *self.retain)}

    @cached_property
    def members(self) -> Mapping[str, Texts]:
        """Texts of forget, which models were trained on, and of holdout."""
        return {split: self._texts(self.membership, split) for split in ("forget", "holdout")}

    @cached_property
    def verbatim(self) -> tuple[Pair, ...]:
        """Prompts from forgotten texts, and how these go on."""
        return self._pairs("verbmem", "forget", ("prompt", "gt"))

    @cached_property
    def questions(self) -> Mapping[str, tuple[Pair, ...]]:
        """Questions and answers about what is forgotten and what is retained."""
        return {part: self._asked(f"{part}_qa") for part in ("forget", "retain")}

    @cached_property
    def examples(self) -> Mapping[str, tuple[Pair, ...]]:
        """Those that stand before each question, by part. ValueError where they are too few."""
        found = {}
        for part in ("forget", "retain"):
            listed = self._asked(f"{part}_qa_icl") if self.shots else ()
            if len(listed) < self.shots:
                raise ValueError(
                    f"shots={self.shots}, but knowmem/{part}_qa_icl has {len(listed)}: set it lower"
                )
            found[part] = listed[: self.shots]
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of all texts, and of what each is for."""
        parts = self.raw, self.members, self.verbatim, self.questions, self.examples
        return hashlib.sha256(json.dumps([self.retain, *parts]).encode()).hexdigest()[:16]

    def _asked(self, split: str) -> tuple[Pair, ...]:
        return self._pairs("knowmem", split, ("question", "answer"))

    def _texts(self, config: str, split: str) -> Texts:
        return tuple(one for (one,) in self._read(config, split, ("text",)))

    def _pairs(self, config: str, split: str, fields: Pair) -> tuple[Pair, ...]:
        return tuple((given, learned) for given, learned in self._read(config, split, fields))

    def _read(self, config: str, split: str, fields: tuple[str, ...]) -> list[list[str]]:
        path = named(f"{self.folder}/{config}", split, "muse-bench/MUSE-News or -Books")
        found = [
            [text(record[field], f"{config}/{place} field {field!r}") for field in fields]
            for place, record in records(path, fields)
        ]
        if not found:
            raise ValueError(f"{config}/{split} holds no texts: give one a line, or a row")
        return found

"""MUSE's texts and questions, in files as `muse-bench/MUSE-News` and -Books lay them out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from undo_jax.checks import check_at_least, check_choice
from undo_jax.data.files import find_table, json_hash
from undo_jax.data.records import Record, read_all, text_field

Texts = tuple[str, ...]
Pair = tuple[str, str]  # a question with its answer, or a prompt with the text that follows it


@dataclass(frozen=True)
class MuseFiles:
    """A folder with `CONFIG/SPLIT-*.parquet`, or `CONFIG/SPLIT.jsonl` or .json of JSON lines.

    It needs raw/forget and raw/ of each of `retain`, verbmem/forget, knowmem/{forget,retain}_qa
    and, with `shots`, the same as `*_qa_icl`; and forget and holdout of `membership`, a config with
    texts that were trained and texts of the same kind that were not: "privleak", or "raw". The
    fingerprint depends on the content, not on the path.

    Raises:
        ValueError: For no split to retain, an unknown membership and negative shots; reading raises
            it for a bad file, in one line.
        FileNotFoundError: On reading, for a missing file.
    """

    folder: str | Path  # of the files of MUSE
    retain: tuple[str, ...] = ("retain1", "retain2")  # splits of raw; the first is stream retain
    membership: str = "privleak"  # the config with forget and holdout: privleak or raw
    shots: int = 10  # questions with answers that stand before one; reference: 10

    def __post_init__(self):
        if not self.retain:
            raise ValueError("retain is empty: name a split of raw at least, e.g. retain1")
        check_choice("membership", self.membership, ("privleak", "raw"))
        check_at_least("shots", self.shots, 0)

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
        """Prompts from forgotten texts, and the texts that follow them."""
        return self._pairs("verbmem", "forget", "prompt", "gt")

    @cached_property
    def questions(self) -> Mapping[str, tuple[Pair, ...]]:
        """Questions and answers about forgotten and about retained texts, by part."""
        return {part: self._questions(f"{part}_qa") for part in ("forget", "retain")}

    @cached_property
    def examples(self) -> Mapping[str, tuple[Pair, ...]]:
        """Those that stand before each question, by part. ValueError where they are too few."""
        examples = {}
        for part in ("forget", "retain"):
            pairs = self._questions(f"{part}_qa_icl") if self.shots else ()
            if len(pairs) < self.shots:
                raise ValueError(
                    f"shots={self.shots}, but knowmem/{part}_qa_icl has {len(pairs)}: set it lower"
                )
            examples[part] = pairs[: self.shots]
        return examples

    @property
    def fingerprint(self) -> str:
        """Hash of all texts, and of what each is for."""
        parts = self.raw, self.members, self.verbatim, self.questions, self.examples
        return json_hash([self.retain, *parts])

    def _questions(self, split: str) -> tuple[Pair, ...]:
        return self._pairs("knowmem", split, "question", "answer")

    def _texts(self, config: str, split: str) -> Texts:
        return tuple(text for (text,) in self._read(config, split, "text"))

    def _pairs(self, config: str, split: str, prompt: str, answer: str) -> tuple[Pair, ...]:
        return tuple((p, a) for p, a in self._read(config, split, prompt, answer))

    def _read(self, config: str, split: str, *fields: str) -> tuple[list[str], ...]:
        def convert(record: Record, place: str) -> list[str]:
            return [text_field(record, field, place) for field in fields]

        path = find_table(f"{self.folder}/{config}", split, "muse-bench/MUSE-News or -Books")
        return read_all(path, fields, convert, "texts")

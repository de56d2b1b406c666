"""The two passes over one shard of text: hash its documents, then tokenise and pack them.

A pass writes its result at its end, atomically.
"""

import hashlib
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from undo_jax.data.packing import cut, join
from undo_jax.data.row_files import UNFINISHED, RowFile, open_row_file
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.runtime.atomic_files import write_atomically, write_json

SPLITS = ("train", "validation")
DUPLICATE = len(SPLITS)  # of a document that is in neither split
LONGEST = 2048  # tokens; reference joining drops longer documents, as the official code does
GROUP = 1000  # documents joined at a time, as in the official code
HASH = 24  # bytes
COUNTS = ("documents", "tokens", "too_long")  # of a split


class PackingPlan(NamedTuple):
    """How a corpus is packed: the same for all of its shards."""

    folder: epath.Path
    tokenizer: Tokenizer
    length: int
    seed: int
    joining: Literal["exact", "reference"]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of rows on disk."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4")

    def hashes(self, number: int) -> epath.Path:
        """Returns the path of a shard's hashes: three integers per document, then their hash."""
        return self.folder / UNFINISHED / f"{number:05d}-hashes"

    def result(self, number: int) -> epath.Path:
        """Returns the path of a packed shard's counts, files and leftover tokens."""
        return self.folder / UNFINISHED / f"{number:05d}.json"


def hash_documents(plan: PackingPlan, number: int, shard: Shard) -> None:
    """Hashes every document of the shard of that number."""
    salt = plan.seed.to_bytes(16, "little")
    hashes = b"".join(
        hashlib.blake2b(document.encode(), digest_size=HASH, salt=salt).digest()
        for document in shard.read()
    )
    checksum = hashlib.blake2b(hashes, digest_size=HASH).digest()
    write_atomically(plan.hashes(number), hashes + checksum)


def load_hashes(plan: PackingPlan, number: int) -> np.ndarray:
    """Returns what `hash_documents` wrote, [N, 3]. Raises ValueError where it is damaged."""
    content = plan.hashes(number).read_bytes()
    hashes, checksum = content[:-HASH], content[-HASH:]
    if hashlib.blake2b(hashes, digest_size=HASH).digest() != checksum:
        raise ValueError(
            f"{plan.hashes(number)} is damaged: delete it, and the same command makes it again"
        )
    return np.frombuffer(hashes, "<u8").reshape(-1, 3)


def pack_documents(plan: PackingPlan, number: int, shard: Shard, splits: np.ndarray) -> None:
    """Tokenises a shard's documents and packs them into one file per split.

    `splits` has the index of each document's split, or DUPLICATE. Raises ValueError for a text that
    the tokenizer refuses and a shard whose number of documents has changed.
    """
    count = 0
    with ExitStack() as files:
        packers = [Packer(plan, f"{split}-{number:05d}", files) for split in SPLITS]
        for count, document in enumerate(shard.read(), start=1):
            if count > len(splits) or splits[count - 1] == DUPLICATE:
                continue
            try:
                tokens = np.array(plan.tokenizer.encode(document), plan.dtype)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{shard.name} document {count}: {error}") from None
            packers[splits[count - 1]].add(tokens)
        if count != len(splits):
            raise ValueError(
                f"{shard.name} held {len(splits)} documents when first read and holds {count} now: "
                f"delete {plan.folder} and pack again"
            )
        for packer in packers:
            packer.end()
    results = {split: packer.result() for split, packer in zip(SPLITS, packers, strict=True)}
    write_json(plan.result(number), results)


class Packer:
    """Packs one split of a shard; `files` closes its file, which exists once a row is full."""

    def __init__(self, plan: PackingPlan, name: str, files: ExitStack):
        self.plan, self.files = plan, files
        self.path = plan.folder / f"{name}.array_record"
        self.counts = dict.fromkeys(COUNTS, 0)
        self.documents: list[np.ndarray] = []  # that are not in a row yet
        self.rest, self.pending = np.empty(0, plan.dtype), 0
        self.rows: RowFile | None = None

    def add(self, tokens: np.ndarray) -> None:
        """Adds a document; rows are written when there are many."""
        self.counts["documents"] += 1
        self.counts["tokens"] += len(tokens) + 1
        if self.plan.joining == "reference" and len(tokens) > LONGEST:
            self.counts["too_long"] += 1
            return
        self.documents.append(tokens)
        self.pending += len(tokens)
        # The second limit bounds memory; reference joining never reaches it.
        if len(self.documents) == GROUP or self.pending > GROUP * LONGEST:
            self._flush()

    def end(self) -> None:
        """Writes the last rows."""
        if self.plan.joining == "exact" and self.counts["documents"]:
            self.documents.append(np.empty(0, self.plan.dtype))  # the BOS that ends the last one
        self._flush()

    def result(self) -> dict[str, Any]:
        """Returns counts, the file's manifest entry, leftover tokens, once `files` are closed."""
        entries = [self.rows.entry()] if self.rows else []
        return {**self.counts, "files": entries, "rest": self.rest.tolist()}

    def _flush(self) -> None:
        plan, bos = self.plan, self.plan.tokenizer.bos_id
        if plan.joining == "reference":
            rows = join(self.documents, plan.length, bos).astype(plan.dtype)
        else:
            opening = np.array([bos], plan.dtype)
            pieces = (piece for tokens in self.documents for piece in (opening, tokens))
            rows, self.rest = cut(np.concatenate([self.rest, *pieces]), plan.length)
        if len(rows) and self.rows is None:
            self.rows = self.files.enter_context(open_row_file(self.path))
        if self.rows:
            self.rows.write(rows)
        self.documents, self.pending = [], 0

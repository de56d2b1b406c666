"""What one process does to one shard of text: read and hash it, then tokenise and pack it.

A step is a generator that yields its progress (documents, tokens) and writes its result at its end,
atomically.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from undo_jax.data.packing import cut, join
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.runtime.atomic_files import atomic_file, write_json

SPLITS = ("train", "validation")
DUPLICATE = len(SPLITS)  # of a document that is in neither split
WORK = "unfinished"  # subfolder of unfinished and temporary files
LONGEST = 2048  # tokens; reference joining drops longer documents, as the official code does
GROUP = 1000  # documents joined at a time, as in the official code
HASH = 24  # bytes
_TOKENS = GROUP * LONGEST  # the most packed at a time; reference joining never reaches it

Counts = Iterator[tuple[int, int]]

_plan: Any = None  # of a worker process
_shared: Any = None


class Plan(NamedTuple):
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


class Part(NamedTuple):
    """A shard and its index among the corpus' shards."""

    number: int
    shard: Shard

    def hashes(self, folder: epath.Path) -> epath.Path:
        """The file that `read` writes: a hash of three integers per document, then their hash."""
        return folder / WORK / f"{self.number:05d}-hashes"

    def packed(self, folder: epath.Path) -> epath.Path:
        """The file that `pack` writes last: its counts, its files and its leftover tokens."""
        return folder / WORK / f"{self.number:05d}.json"


def read(plan: Plan, part: Part) -> Counts:
    """Hash every document of a shard."""
    salt = plan.seed.to_bytes(16, "little")
    hashes = bytearray()
    for document in part.shard.read():
        hashes += hashlib.blake2b(document.encode(), digest_size=HASH, salt=salt).digest()
        yield 1, 0
    with publishing(part.hashes(plan.folder)) as path, open(path, "wb") as file:
        file.write(hashes + _hash(hashes))


def load_hashes(folder: epath.Path, part: Part) -> np.ndarray:
    """What `read` wrote. Raises ValueError where it is damaged."""
    content = part.hashes(folder).read_bytes()
    hashes, known = content[:-HASH], content[-HASH:]
    if _hash(hashes) != known:
        raise ValueError(
            f"{part.hashes(folder)} is damaged: delete it, and the same command makes it again"
        )
    return np.frombuffer(hashes, "<u8").reshape(-1, 3)


def _hash(content: bytes | bytearray) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH).digest()


def pack(plan: Plan, part: Part, fates: np.ndarray) -> Counts:
    """Tokenise a shard's documents and pack them into one file per split.

    `fates` has the index of each document's split, or DUPLICATE. Raises ValueError for a text that
    the tokenizer refuses and a shard whose number of documents has changed.
    """
    place = -1
    with ExitStack() as files:
        splits = [Packer(plan, f"{split}-{part.number:05d}", files) for split in SPLITS]
        for place, document in enumerate(part.shard.read()):
            number = int(fates[place]) if place < len(fates) else DUPLICATE
            if number != DUPLICATE:
                tokens = _encode(plan, f"{part.shard.name} document {place + 1}", document)
                splits[number].add(tokens)
                yield 1, len(tokens) + 1
        if place + 1 != len(fates):
            raise ValueError(
                f"{part.shard.name} held {len(fates)} documents when first read and holds "
                f"{place + 1} now: delete {plan.folder} and pack again"
            )
        for split in splits:
            split.end()
    results = {name: split.result() for name, split in zip(SPLITS, splits, strict=True)}
    write_json(part.packed(plan.folder), results)


def _encode(plan: Plan, place: str, document: str) -> np.ndarray:
    try:
        return np.array(plan.tokenizer.encode(document), plan.dtype)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {error}") from None


class Packer:
    """Packs one split of a shard; `files` closes its file, which exists once a row is full."""

    def __init__(self, plan: Plan, name: str, files: ExitStack):
        self.plan, self.name, self.files = plan, name, files
        self.documents: list[np.ndarray] = []
        self.rest = np.empty(0, plan.dtype)  # tokens that are not in a row yet
        self.held = self.count = self.tokens = self.too_long = 0
        self.rows: RowFile | None = None

    def add(self, tokens: np.ndarray) -> None:
        """Add a document; rows are written when there are many."""
        self.count += 1
        self.tokens += len(tokens) + 1
        if self.plan.joining == "reference" and len(tokens) > LONGEST:
            self.too_long += 1
            return
        self.documents.append(tokens)
        self.held += len(tokens)
        if len(self.documents) == GROUP or self.held > _TOKENS:
            self._flush()

    def end(self) -> None:
        """Write the last rows."""
        if self.plan.joining == "exact" and self.count:
            self.documents.append(np.empty(0, self.plan.dtype))  # the BOS that ends the last one
        self._flush()

    def result(self) -> dict[str, Any]:
        """Counts, the file's manifest entry, leftover tokens. Call it once `files` are closed."""
        return {
            "documents": self.count,
            "tokens": self.tokens,
            "too_long": self.too_long,
            "files": [self.rows.entry()] if self.rows else [],
            "rest": self.rest.tolist(),
        }

    def _flush(self) -> None:
        plan, bos = self.plan, self.plan.tokenizer.bos_id
        if plan.joining == "reference":
            rows = join(self.documents, plan.length, bos).astype(plan.dtype)
        else:
            opening = np.array([bos], plan.dtype)
            pieces = (piece for tokens in self.documents for piece in (opening, tokens))
            rows, self.rest = cut(np.concatenate([self.rest, *pieces]), plan.length)
        if len(rows) and self.rows is None:
            path = plan.folder / f"{self.name}.array_record"
            self.rows = self.files.enter_context(writing(path))
        if self.rows:
            self.rows.write(rows)
        self.documents, self.held = [], 0


class RowFile:
    """An ArrayRecord file of rows that is being written, one row per record."""

    def __init__(self, path: epath.Path, written: str):
        self.path, self.count, self.hash = path, 0, hashlib.sha256()
        self.writer = ArrayRecordWriter(written, "group_size:1")  # for random access

    def write(self, rows: np.ndarray) -> None:
        """Append rows."""
        for row in rows:
            content = row.tobytes()
            self.hash.update(content)
            self.writer.write(content)
        self.count += len(rows)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of the file, once it is closed."""
        return {
            "name": self.path.name,
            "rows": self.count,
            "bytes": self.path.stat().length,
            "sha256": self.hash.hexdigest(),
        }


def start_worker(plan: Plan, shared: Any) -> None:
    """Initialise a worker process: the plan, and the shared memory for its progress."""
    global _plan, _shared
    _plan, _shared = plan, shared
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    """End when the parent is killed; a worker would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(step: Callable[..., Counts], job: tuple[Any, ...]) -> None:
    """Run a job in a worker process, until the parent says to stop."""
    for documents, tokens in paced(step(_plan, *job)):
        with _shared.get_lock():
            _shared[0] += documents
            _shared[1] += tokens
        if _shared[2]:
            return


def paced(progress: Counts) -> Counts:
    """The same progress, summed up and yielded ten times a second."""
    documents = tokens = 0
    due = time.monotonic()
    for more in progress:
        documents, tokens = documents + more[0], tokens + more[1]
        if time.monotonic() > due:
            yield documents, tokens
            documents = tokens = 0
            due = time.monotonic() + 0.1
    yield documents, tokens


@contextmanager
def writing(path: epath.Path) -> Iterator[RowFile]:
    """A file for rows, which appears under its path once all are written."""
    with publishing(path) as written:
        rows = RowFile(path, written)
        yield rows
        rows.writer.close()


@contextmanager
def publishing(path: epath.Path) -> Iterator[str]:
    """A local path to write to; if the block raises no error, the file is then moved to `path`."""
    work = path.parent if path.parent.name == WORK else path.parent / WORK
    with atomic_file(path, work / f"{path.name}.{os.getpid()}.tmp") as temporary:
        yield os.fspath(temporary)

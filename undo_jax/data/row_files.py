"""ArrayRecord files of rows, one row a record: written at once or not at all, read by index."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from undo_jax.data.files import open_array_record, reading
from undo_jax.runtime.atomic_files import atomic_file

UNFINISHED = "unfinished"  # subfolder of unfinished and temporary files
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own advice


class RowFile:
    """A file of rows that is being written."""

    def __init__(self, path: epath.Path, written: str):
        self.path, self.count, self.hash = path, 0, hashlib.sha256()
        self.writer = ArrayRecordWriter(written, "group_size:1")  # for random access

    def write(self, rows: np.ndarray) -> None:
        """Appends rows."""
        for row in rows:
            content = row.tobytes()
            self.hash.update(content)
            self.writer.write(content)
        self.count += len(rows)

    def entry(self) -> dict[str, Any]:
        """Returns the manifest's entry of the file, once it is closed."""
        return {
            "name": self.path.name,
            "rows": self.count,
            "bytes": self.path.stat().length,
            "sha256": self.hash.hexdigest(),
        }


@contextmanager
def open_row_file(path: epath.Path) -> Iterator[RowFile]:
    """A file for rows, which appears under its path once all are written."""
    with atomic_file(path, path.parent / UNFINISHED / f"{path.name}.{os.getpid()}.tmp") as written:
        rows = RowFile(path, os.fspath(written))
        yield rows
        rows.writer.close()


class RecordFile(NamedTuple):
    """A file of rows that is written."""

    path: str
    rows: int
    sha256: str  # of all rows, one after another


@dataclass(frozen=True)
class StoredRows:
    """The rows of some files, which are read when they are indexed; picklable and hashable."""

    files: tuple[RecordFile, ...]
    row_shape: tuple[int, ...]
    stored: Any  # dtype on disk
    dtype: Any  # of the rows that indexing returns

    @property
    def shape(self) -> tuple[int, ...]:
        """[R, *row_shape]."""
        return len(self), *self.row_shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """Returns the rows at these indices, [n, *row_shape]; one read per file.

        Raises IndexError for an index outside 0..R-1 and OSError for a damaged file.
        """
        ends = np.cumsum([file.rows for file in self.files])
        if isinstance(indices, slice):
            indices = np.arange(ends[-1])[indices]
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < ends[-1]:
            raise IndexError(
                f"rows {indices.min()}..{indices.max()} are not all in 0..{ends[-1] - 1}"
            )
        rows = np.empty((len(indices), *self.row_shape), self.dtype)
        file_numbers = np.searchsorted(ends, indices, side="right")
        for number in np.unique(file_numbers):
            file, in_file = self.files[number], file_numbers == number
            places = indices[in_file] - (ends[number] - file.rows)
            reader = _random_access_reader(file)
            with reading(file.path):
                content = b"".join(reader.read(places.tolist()))
            rows[in_file] = np.frombuffer(content, self.stored).reshape(-1, *self.row_shape)
        return rows

    @property
    def digest(self) -> str:
        """Hash of the rows and of the files they are in."""
        return hashlib.sha256(" ".join(file.sha256 for file in self.files).encode()).hexdigest()


@lru_cache(maxsize=256)
def _random_access_reader(file: RecordFile) -> Any:
    return open_array_record(file.path, RANDOM_ACCESS)

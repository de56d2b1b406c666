"""ArrayRecord files of rows, which appear under their name once all rows are written."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from undo_jax.runtime.atomic_files import atomic_file

UNFINISHED = "unfinished"  # subfolder of unfinished and temporary files


class RowFile:
    """An ArrayRecord file of rows that is being written, one row per record."""

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

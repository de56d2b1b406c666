"""ArrayRecord files of rows, which appear under their name once all rows are written."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from undo_jax.runtime.atomic_files import fsync, is_remote

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
    with publish_when_written(path) as written:
        rows = RowFile(path, written)
        yield rows
        rows.writer.close()


@contextmanager
def publish_when_written(path: epath.Path) -> Iterator[str]:
    """A local path to write to; if the block raises no error, the file is then moved to `path`."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield f"{folder}/{path.name}"
            epath.Path(f"{folder}/{path.name}").copy(path, overwrite=True)
        return
    folder = path.parent if path.parent.name == UNFINISHED else path.parent / UNFINISHED
    unfinished = folder / f"{path.name}.{os.getpid()}.tmp"
    try:
        yield os.fspath(unfinished)
        fsync(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)  # the disk is full, or a signal stops the process
    fsync(path.parent)

"""A model's hidden states of rows on disk: computed once, and read wherever they are needed.

FOLDER/
    manifest.json               what they are of, and the files; written last: a folder without it
                                is unfinished
    00000.array_record, ...     one row a record: [T, D] numbers
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from undo_jax.data.files import local_copy
from undo_jax.data.row_files import UNFINISHED, RecordFile, StoredRows, open_row_file
from undo_jax.runtime.atomic_files import read_json, write_json

MANIFEST = "manifest.json"
FILE_BYTES = 2**28  # of a file, at most; but at least one row


@dataclass(frozen=True)
class StatesSpec:
    """The model and rows that stored states belong to; it is compared when they are opened."""

    model: str  # fingerprint of its artifact
    parameters: str  # digest of its parameters
    rows: str  # hash of the rows
    count: int  # R
    length: int  # T
    width: int  # D
    dtype: str

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits."""
        return hashlib.sha256(json.dumps(vars(self)).encode()).hexdigest()[:8]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's states."""
        return self.length * self.width * jnp.dtype(self.dtype).itemsize

    @property
    def files(self) -> list[tuple[int, int]]:
        """The first row of each file, and the first one after it."""
        size = max(1, FILE_BYTES // self.row_bytes)
        return [(at, min(at + size, self.count)) for at in range(0, self.count, size)]


def open_states(folder: epath.Path, spec: StatesSpec) -> StoredRows:
    """Returns the finished states in a folder.

    Raises FileNotFoundError for a folder without any, and ValueError for states of something else,
    and for files that are missing, cut or not those that were written.
    """
    path, remedy = folder / MANIFEST, f"delete {folder}, and a run makes them again"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished states")
    manifest = read_json(path, remedy)
    stored = manifest.get("about")
    if stored != vars(spec):
        stored = stored if isinstance(stored, dict) else {}
        different = [name for name, value in vars(spec).items() if stored.get(name) != value]
        raise ValueError(f"{folder} holds states of another {' and '.join(different)}: {remedy}")
    files = []
    try:
        entries = [
            (folder / e["name"], e["bytes"], e["rows"], e["sha256"]) for e in manifest["files"]
        ]
        counts = [end - first for first, end in spec.files]
        entries = [*zip(entries, counts, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged (its files): {remedy}") from error
    for (path, length, rows, sha256), count in entries:
        size = path.stat().length if path.exists() else 0
        if size != length or rows != count:
            raise ValueError(f"{path} has {size} bytes and not {length}: {remedy}")
        files.append(RecordFile(local_copy(path), rows, sha256))
    dtype = jnp.dtype(spec.dtype)
    return StoredRows(tuple(files), (spec.length, spec.width), dtype, dtype)


def unwritten(folder: epath.Path, spec: StatesSpec) -> list[bool]:
    """Returns which files are not written yet, in a folder that may be unfinished or not exist."""
    return [_written_entry(folder, number) is None for number in range(len(spec.files))]


def write_file(folder: epath.Path, number: int, blocks: Iterator[np.ndarray]) -> None:
    """Writes the file of that number, from blocks of its rows' states, [n, T, D].

    No other process may write into the folder.
    """
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    for leftover in (folder / UNFINISHED).glob("*.tmp"):  # by a process that was killed
        leftover.unlink()
    with open_row_file(folder / f"{number:05d}.array_record") as rows:
        for block in blocks:
            rows.write(block)
    write_json(_note(folder, number), {"file": rows.entry()})


def finish_states(folder: epath.Path, spec: StatesSpec) -> None:
    """Marks the states as finished, once all files are written."""
    files = [_written_entry(folder, number) for number in range(len(spec.files))]
    write_json(folder / MANIFEST, {"about": vars(spec), "files": files})
    (folder / UNFINISHED).rmtree()


def _note(folder: epath.Path, number: int) -> epath.Path:
    return folder / UNFINISHED / f"{number:05d}.json"


def _written_entry(folder: epath.Path, number: int) -> Mapping[str, Any] | None:
    """Returns the manifest's entry of a written file; None if there is none, or it is damaged."""
    try:
        entry = read_json(_note(folder, number))["file"]
        is_whole = (folder / entry["name"]).stat().length == entry["bytes"]
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return entry if is_whole else None

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

from undo_jax.data.files import RecordFile, local_copy, read_rows
from undo_jax.data.row_files import UNFINISHED, open_row_file
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


@dataclass(frozen=True)
class States:
    """Stored states, [R, T, D], which are read when they are indexed; picklable and hashable."""

    spec: StatesSpec
    files: tuple[RecordFile, ...]

    ndim = 3

    def __len__(self) -> int:
        return self.spec.count

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.spec.count, self.spec.length, self.spec.width

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.spec.dtype)

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """Returns the states of the rows at these indices, [n, T, D]. Raises as `read_rows`."""
        return read_rows(self.files, indices, self.shape[1:], self.dtype)


def open_states(folder: epath.Path, spec: StatesSpec) -> States:
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
    entries: Any = manifest.get("files")
    if not _are_entries(entries) or len(entries) != len(spec.files):
        raise ValueError(f"{path} is damaged (its files): {remedy}")
    files = []
    for entry, (first, end) in zip(entries, spec.files, strict=True):
        path = folder / entry["name"]
        size = path.stat().length if path.exists() else 0
        if size != entry["bytes"] or entry["rows"] != end - first:
            raise ValueError(f"{path} has {size} bytes and not {entry['bytes']}: {remedy}")
        files.append(RecordFile(local_copy(path), entry["rows"], entry["sha256"]))
    return States(spec, tuple(files))


def _are_entries(entries: Any) -> bool:
    kinds = {"name": str, "rows": int, "bytes": int, "sha256": str}
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
        for entry in entries
    )


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

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

from undo_jax.data.files import Records, local, read_rows
from undo_jax.data.shards import WORK, writing
from undo_jax.runtime.atomic_files import read_json, write_json

MANIFEST = "manifest.json"
FILE_BYTES = 2**28  # of a file, at most; but at least one row


@dataclass(frozen=True)
class About:
    """What stored states are of: whoever finds others in their folder has mixed up folders."""

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
        return self.length * self.width * jnp.dtype(self.dtype).itemsize

    @property
    def files(self) -> list[tuple[int, int]]:
        """The first row of each file, and the first one after it."""
        size = max(1, FILE_BYTES // self.row_bytes)
        return [(at, min(at + size, self.count)) for at in range(0, self.count, size)]


@dataclass(frozen=True)
class States:
    """Stored states, [R, T, D], read when they are asked for; picklable and hashable."""

    about: About
    files: tuple[Records, ...]

    ndim = 3

    def __len__(self) -> int:
        return self.about.count

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.about.count, self.about.length, self.about.width

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.about.dtype)

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """The states of the rows at these indices, [n, T, D]. Raises what `read_rows` does."""
        return read_rows(self.files, indices, self.shape[1:], self.dtype)


def open_states(folder: epath.Path, about: About) -> States:
    """The finished states in a folder.

    Raises FileNotFoundError for a folder without any, and ValueError for states of something else,
    and for files that are missing, cut or not those that were written.
    """
    path, remedy = folder / MANIFEST, f"delete {folder}, and a run makes them again"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished states")
    found = read_json(path, remedy)
    if found.get("about") != vars(about):
        known = found.get("about")
        other = [
            n for n, v in vars(about).items() if not isinstance(known, dict) or known.get(n) != v
        ]
        raise ValueError(f"{folder} holds states of another {' and '.join(other)}: {remedy}")
    return States(about, tuple(_entries(folder, found.get("files"), about, remedy)))


def _entries(folder: epath.Path, entries: Any, about: About, remedy: str) -> Iterator[Records]:
    known = isinstance(entries, list) and all(map(_is_entry, entries))
    if not known or len(entries) != len(about.files):
        raise ValueError(f"{folder / MANIFEST} is damaged (its files): {remedy}")
    for entry, (first, end) in zip(entries, about.files, strict=True):
        path = folder / entry["name"]
        size = path.stat().length if path.exists() else 0
        if size != entry["bytes"] or entry["rows"] != end - first:
            raise ValueError(f"{path} has {size} bytes and not {entry['bytes']}: {remedy}")
        yield Records(local(path), entry["rows"], entry["sha256"])


def _is_entry(entry: Any) -> bool:
    kinds = {"name": str, "rows": int, "bytes": int, "sha256": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(n), k) for n, k in kinds.items())


def unwritten(folder: epath.Path, about: About) -> list[bool]:
    """Which files are not written yet, in a folder that may be unfinished or not exist."""
    return [_written(folder, number) is None for number in range(len(about.files))]


def write_file(folder: epath.Path, number: int, blocks: Iterator[np.ndarray]) -> None:
    """Write the file of that number, from blocks of its rows' states, [n, T, D].

    No other process may write into the folder.
    """
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:05d}.array_record"
    for left in (folder / WORK).glob("*.tmp"):  # by a process that was killed
        left.unlink()
    with writing(path) as rows:
        for block in blocks:
            rows.write(block)
    write_json(_note(folder, number), {"file": rows.entry()})


def finish_states(folder: epath.Path, about: About) -> None:
    """Mark the states as finished, once all files are written."""
    files = [_written(folder, number) for number in range(len(about.files))]
    write_json(folder / MANIFEST, {"about": vars(about), "files": files})
    (folder / WORK).rmtree()


def _note(folder: epath.Path, number: int) -> epath.Path:
    return folder / WORK / f"{number:05d}.json"


def _written(folder: epath.Path, number: int) -> Mapping[str, Any] | None:
    """The manifest's entry of a written file; None if there is none, or if it is damaged."""
    note = _note(folder, number)
    try:
        entry = read_json(note)["file"] if note.exists() else None
        whole = entry and (folder / entry["name"]).stat().length == entry["bytes"]
    except (ValueError, KeyError, OSError):
        return None
    return entry if whole else None

"""A corpus on disk: packed rows of text in ArrayRecord files, described by manifest.json.

Its folder holds::

    manifest.json               settings, counts, files; written last: a folder without it is
                                unfinished
    train-00000.array_record    rows of the first shard, T + 1 little-endian integers a record
    train-rest.array_record     rows packed from what was left over of the shards
    validation-...
"""

import hashlib
import itertools
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from undo_jax.data.files import Records, local, read_rows, reading
from undo_jax.runtime.atomic_files import parse_json

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class PackedRows:
    """Rows of one split, [R, T + 1], read when they are asked for; picklable and hashable."""

    files: tuple[Records, ...]
    row_length: int
    stored: str  # dtype on disk

    ndim = 2
    dtype = np.dtype(np.int32)  # of the rows that it gives

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def shape(self) -> tuple[int, int]:
        """[R, T + 1]."""
        return len(self), self.row_length + 1

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """The rows at these indices, int32 [n, T + 1]. Raises what `read_rows` does."""
        return read_rows(self.files, indices, (self.row_length + 1,), self.stored).astype(np.int32)

    @property
    def digest(self) -> str:
        """Hash of the rows and of the files they are in."""
        return hashlib.sha256(" ".join(file.sha256 for file in self.files).encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Reads what `undo-jax data pack` made; its path is not part of its identity."""

    folder: str | Path  # of packed rows, see `undo-jax data pack`

    def __post_init__(self) -> None:
        """Read the manifest at once, so that a bad folder fails here.

        A folder that does not exist yet raises FileNotFoundError only where it is read: `undo-jax
        fit` needs no data. Raises ValueError for a manifest of another version or damaged.
        """
        assert not self.exists or self.manifest

    @property
    def exists(self) -> bool:
        """Whether the corpus exists and is finished."""
        path = epath.Path(self.folder) / MANIFEST
        with reading(str(path)):
            return path.exists()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Its settings, counts, files and fingerprint."""
        path = epath.Path(self.folder) / MANIFEST
        with reading(str(path)):
            text = path.read_bytes() if path.exists() else None
        if text is None:
            raise FileNotFoundError(
                f"{self.folder} is no finished corpus, it has no {MANIFEST}: pack it as the "
                "experiment's file says, or go on with the command that began it"
            )
        manifest = parse_json(text, str(path), "pack the corpus again")
        version = manifest.get("version") if isinstance(manifest, dict) else None
        if version != VERSION:
            raise ValueError(
                f"{path} is of version {version}, this code reads {VERSION}: pack the corpus again"
            )
        if missing := {"settings", "counts", "files", "fingerprint"} - manifest.keys():
            raise ValueError(
                f"{path} has no {' nor '.join(sorted(missing))}: pack the corpus again"
            )
        try:
            _check(manifest)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): pack the corpus again") from error
        content = {name: value for name, value in manifest.items() if name != "fingerprint"}
        if fingerprint(content) != manifest["fingerprint"]:
            raise ValueError(
                f"{path} is damaged (its content does not match its fingerprint): copy or pack the "
                "corpus again"
            )
        return manifest

    @property
    def fingerprint(self) -> str:
        """Hash of its settings and its rows."""
        return self.manifest["fingerprint"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows."""
        return tuple(self.manifest["files"])

    def rows(self, split: str = "train") -> PackedRows:
        """Rows of a split, to be given to `undo_jax.data.streams.stream`.

        Raises ValueError for a split it does not have, FileNotFoundError for a file that is missing
        and OSError for one whose length has changed.
        """
        if split not in self.splits:
            raise ValueError(
                f"{self.folder} has no split {split!r}, only {', '.join(self.splits)}: pack it "
                "with a validation_share"
            )
        files = []
        for entry in self.manifest["files"][split]:
            path = epath.Path(self.folder) / entry["name"]
            with reading(str(path)):
                size = path.stat().length
            if size != entry["bytes"]:
                raise OSError(
                    f"{path} has {size} bytes and not {entry['bytes']}: copy or pack it again"
                )
            files.append(Records(local(path), entry["rows"], entry["sha256"]))
        settings = self.manifest["settings"]
        return PackedRows(tuple(files), settings["row_length"], settings["dtype"])


def _check(manifest: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or AttributeError for a manifest that `prepare` did not write."""
    settings, entries = manifest["settings"], itertools.chain(*manifest["files"].values())
    found = [(settings["tokenizer"]["fingerprint"], str), (settings["vocab_size"], int)]
    found += [(settings["row_length"], int), (manifest["fingerprint"], str)]
    counts = manifest["counts"]
    numbers = [counts["documents"], counts["duplicates"]]
    for split in manifest["files"]:
        numbers += [counts[split][name] for name in ("rows", "tokens", "tokens_in_rows")]
    for entry in entries:
        found += [(entry["name"], str), (entry["sha256"], str)]
        found += [(entry["rows"], int), (entry["bytes"], int)]
        if Path(entry["name"]).name != entry["name"]:
            raise TypeError(f"file {entry['name']}")
    for value, kind in found:
        if type(value) is not kind or (kind is int and not 0 < value < 2**63):
            raise TypeError(reprlib.repr(value))
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise TypeError(f"counts {reprlib.repr(counts)}")
    if not any(counts[split]["tokens"] for split in manifest["files"]):
        raise TypeError("no tokens")
    if settings["dtype"] not in ("<u2", "<u4"):
        raise TypeError(f"dtype {settings['dtype']!r}")


def fingerprint(content: Mapping[str, Any]) -> str:
    """Hash of all else that a manifest holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

"""A corpus on disk: packed rows of text in ArrayRecord files, described by manifest.json.

Its folder holds::

    manifest.json               settings, counts, files; written last: a folder without it is
                                unfinished
    train-00000.array_record    rows of the first shard, T + 1 little-endian integers a record
    train-rest.array_record     rows packed from what was left over of the shards
    validation-...
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from undo_jax.data.files import json_hash, local_copy, reading
from undo_jax.data.row_files import RecordFile, StoredRows
from undo_jax.runtime.atomic_files import parse_json

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Corpus:
    """A folder of packed rows, as `undo-jax data pack` writes it.

    The path is not part of the fingerprint.

    Raises:
        ValueError: For a manifest of another version, or a damaged one. A folder that does not
            exist yet raises FileNotFoundError only when it is read: `undo-jax fit` needs no data.
    """

    folder: str | Path  # of packed rows, see `undo-jax data pack`

    def __post_init__(self) -> None:
        """Reads the manifest at once, so that a bad folder fails here."""
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
        if not self.exists:
            raise FileNotFoundError(
                f"{self.folder} is no finished corpus, it has no {MANIFEST}: pack it as the "
                "experiment's file says, or go on with the command that began it"
            )
        with reading(str(path)):
            text = path.read_bytes()
        manifest = parse_json(text, str(path), "pack the corpus again")
        version = manifest.get("version") if isinstance(manifest, dict) else None
        if version != VERSION:
            raise ValueError(
                f"{path} is of version {version}, this code reads {VERSION}: pack the corpus again"
            )
        content = {name: value for name, value in manifest.items() if name != "fingerprint"}
        if json_hash(content, sort_keys=True) != manifest.get("fingerprint"):
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

    def rows(self, split: str = "train") -> StoredRows:
        """Returns the rows of a split, a source of `undo_jax.data.streams.stream`.

        Args:
            split: "train", or "validation" if it was packed with a validation_share.

        Returns:
            Rows of token ids, int32 [R, T + 1], which are read when they are indexed.

        Raises:
            ValueError: For a split that the corpus does not have, and a file outside of its folder.
            FileNotFoundError: For a file that is missing.
            OSError: For a file whose length has changed.
        """
        if split not in self.splits:
            raise ValueError(
                f"{self.folder} has no split {split!r}, only {', '.join(self.splits)}: pack it "
                "with a validation_share"
            )
        files = []
        for entry in self.manifest["files"][split]:
            path = epath.Path(self.folder) / entry["name"]
            if path.name != entry["name"]:
                raise ValueError(
                    f"{self.folder}/{MANIFEST} names {entry['name']!r}, a file outside of its "
                    "folder: pack the corpus again"
                )
            with reading(str(path)):
                size = path.stat().length
            if size != entry["bytes"]:
                raise OSError(
                    f"{path} has {size} bytes and not {entry['bytes']}: copy or pack it again"
                )
            files.append(RecordFile(local_copy(path), entry["rows"], entry["sha256"]))
        settings = self.manifest["settings"]
        row_shape = (settings["row_length"] + 1,)
        return StoredRows(tuple(files), row_shape, settings["dtype"], np.dtype(np.int32))

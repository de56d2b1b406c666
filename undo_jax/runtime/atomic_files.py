"""Atomic, durable files; JSON with a checksum; and a full disk as an error of one line.

On a local file system a file is written under another name, flushed to the disk, and renamed; then
its folder is flushed. In a bucket an object appears once it is complete, and is durable then.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

CHECKSUM = "sha256"  # the last key of a JSON object that we write: the hash of all other keys
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}  # the latter is a used-up quota


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its hash: atomically, and on the disk on return."""
    write_atomically(path, json.dumps(add_checksum(content), indent=1))


def read_json(path: epath.Path, remedy: str | None = None) -> dict[str, Any]:
    """A JSON object, without its hash. Raises ValueError for a file that has been damaged."""
    remedy = remedy or f"delete {path.parent}, and a run makes it again"
    sealed = parse_json(path.read_bytes(), str(path), remedy)
    try:
        return verify_checksum(sealed)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def parse_json(text: bytes, name: str, remedy: str) -> Any:
    """Parse the JSON of a file. Raises ValueError, with the remedy, for invalid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged ({error}): {remedy}") from error


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with its own hash added."""
    return {**content, CHECKSUM: _hash(content)}


def verify_checksum(sealed: Any) -> dict[str, Any]:
    """The JSON object without its hash. Raises ValueError where the hash does not match.

    An object without a hash, e.g. one that we did not write, passes unchecked.
    """
    if not isinstance(sealed, dict):
        raise ValueError("it holds no object")
    content = {name: value for name, value in sealed.items() if name != CHECKSUM}
    if sealed.get(CHECKSUM, _hash(content)) != _hash(content):
        raise ValueError(f"its content does not match its {CHECKSUM}")
    return content


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_file(path: epath.Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Write a file: atomically, and on the disk on return."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    written = path.with_name(f"{path.name}.tmp")
    try:
        written.write_bytes(data)
        fsync(written)
    except OSError:
        written.unlink(missing_ok=True)  # the disk is full
        raise
    written.replace(path)
    fsync(path.parent)


def fsync_tree(folder: epath.Path) -> None:
    """Flush a folder and all below it to the disk."""
    if not is_remote(folder):
        for place, _, names in os.walk(folder):
            for name in (*names, ""):
                fsync(epath.Path(place) / name)


def fsync(path: epath.Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without fsync
            raise
    finally:
        os.close(descriptor)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute_path(path: epath.Path) -> epath.Path:
    """The absolute path, which Orbax needs; `resolve` would break a bucket's, which is absolute."""
    return path if is_remote(path) else path.resolve()


class DiskFullError(OSError):
    """A disk is full; says which, and what to do."""


@contextmanager
def report_full_disk(
    place: epath.PathLike, then: str = "goes on from what is saved"
) -> Iterator[None]:
    """Raises FullError if the block fails on a full disk: that of `place`, if no file is named.

    `then` is what the same command does once there is room.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        causes = list(_causes(error))
        if not any(map(_full, causes)):
            raise
        named = (name for e in causes if (name := getattr(e, "filename", None)))
        raise DiskFullError(
            f"no space is left on the disk of {next(named, os.fspath(place))}: make room, and the "
            f"same command {then}"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _full(error: BaseException) -> bool:
    """Whether the disk was full; Orbax and TensorStore say so only in their message."""
    return getattr(error, "errno", None) in DISK_FULL_ERRNOS or any(
        os.strerror(n) in str(error) for n in DISK_FULL_ERRNOS
    )

"""Atomic, durable file writes; JSON files with a checksum; a one-line error for a full disk.

On a local file system a file is written under a temporary name, flushed to disk, and renamed; then
its folder is flushed. In a bucket an object appears once it is complete, and is durable then.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

CHECKSUM = "sha256"  # the last key of a JSON object that we write: the hash of all other keys
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}  # the latter: the user's quota is used up
RESUMES = "goes on from what is saved"


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, atomically; it is on disk on return."""
    write_atomically(path, json.dumps(add_checksum(content), indent=1))


def read_json(path: epath.Path, remedy: str | None = None) -> dict[str, Any]:
    """Reads a JSON object and removes its checksum.

    Args:
        path: the file.
        remedy: the end of the error message; by default, to delete the folder.

    Raises:
        ValueError: if the file is damaged.
    """
    remedy = remedy or f"delete {path.parent}, and a run makes it again"
    content = parse_json(path.read_bytes(), str(path), remedy)
    try:
        return verify_checksum(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def parse_json(text: bytes, name: str, remedy: str) -> Any:
    """Parses the JSON of the file `name`. Raises ValueError, with the remedy, if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged ({error}): {remedy}") from error


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON object with its own checksum added."""
    return {**content, CHECKSUM: _hash(content)}


def verify_checksum(json_object: Any) -> dict[str, Any]:
    """Returns the JSON object without its checksum. Raises ValueError if it does not match.

    An object without a checksum, e.g. one that we did not write, passes unchecked.
    """
    if not isinstance(json_object, dict):
        raise ValueError("it holds no object")
    content = {name: value for name, value in json_object.items() if name != CHECKSUM}
    if json_object.get(CHECKSUM, _hash(content)) != _hash(content):
        raise ValueError(f"its content does not match its {CHECKSUM}")
    return content


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_file(path: epath.Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that readers see the old or the new content; it is on disk on return."""
    encoded = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(encoded)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded)


@contextmanager
def atomic_file(path: epath.Path, temporary: epath.Path | None = None) -> Iterator[epath.Path]:
    """Yields a local path to write to; if the block succeeds, that file replaces `path`.

    Args:
        path: the file to write.
        temporary: where to write if `path` is local, on the same file system; by default beside
            it. Processes that may write the same file at once need different ones.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = epath.Path(folder) / path.name
            yield temporary
            temporary.copy(path, overwrite=True)
        return
    temporary = temporary or path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
    except BaseException:  # e.g. the disk is full, or a signal stops the process
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync_tree(folder: epath.Path) -> None:
    """Flushes a folder and everything below it to disk."""
    if not is_remote(folder):
        for parent, _, names in os.walk(folder):
            for name in (*names, ""):
                fsync(epath.Path(parent) / name)


def fsync(path: epath.Path) -> None:
    """Flushes a file, or a folder's list of names, to disk."""
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
    """Returns whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute_path(path: epath.Path) -> epath.Path:
    """Returns the absolute path, which Orbax needs; `resolve` would break a bucket's path."""
    return path if is_remote(path) else path.resolve()


class DiskFullError(OSError):
    """A disk is full. The message names the path and the remedy."""


@contextmanager
def report_full_disk(path: epath.PathLike, resumes: str = RESUMES) -> Iterator[None]:
    """Turns any error in the block that a full disk has caused into a DiskFullError.

    Args:
        path: the path to name if the error names none.
        resumes: what the same command does once there is room, for the message.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        causes = list(_causes(error))
        if not any(map(_is_disk_full, causes)):
            raise
        filenames = (name for cause in causes if (name := getattr(cause, "filename", None)))
        raise DiskFullError(
            f"no space is left on the disk of {next(filenames, os.fspath(path))}: make room, and "
            f"the same command {resumes}"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    """Returns whether the disk was full; Orbax and TensorStore say so only in their message."""
    if getattr(error, "errno", None) in DISK_FULL_ERRNOS:
        return True
    return any(os.strerror(number) in str(error) for number in DISK_FULL_ERRNOS)

"""Files by pattern, local copies of remote ones, and their errors in one line."""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from undo_jax.runtime.atomic_files import atomic_file
from undo_jax.runtime.install import install_command

CACHE = "UNDO_JAX_CACHE"  # compiled programs, local copies of files; default ~/.cache/undo_jax


class File(NamedTuple):
    """A file, and its name relative to where the pattern starts: the same wherever that is."""

    name: str
    path: epath.Path
    size: int  # bytes


def find_files(pattern: epath.PathLike) -> list[File]:
    """Returns the files that a pattern names, sorted: a file, all below a folder, or a glob.

    Hidden files and folders are left out, unless the pattern names one; links are followed.
    Raises FileNotFoundError where nothing matches, ValueError for `**` and an empty pattern, and
    OSError where a folder cannot be listed.
    """
    text = os.fspath(pattern)
    if not text:
        raise ValueError("the pattern is empty: name a file, a folder or a glob")
    if "**" in text:
        raise ValueError(f"pattern {text} holds **: name a folder, it is searched to all depths")
    parts = text.split("/")
    wildcard = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    with reading(text):
        path = epath.Path(text)
        if path.is_file():
            return [_describe(path.parent, path)]
        if wildcard is not None:
            root = epath.Path("/".join(parts[:wildcard]) or ("/" if text[0] == "/" else "."))
            paths = [path for path in root.glob("/".join(parts[wildcard:])) if not path.is_dir()]
        else:
            root, paths = path, _files_below(path) if path.is_dir() else []
        hidden = re.compile(r"(^|/)\.")
        shown = (path for path in paths if not hidden.search(str(path.relative_to(root))))
        files = [_describe(root, path) for path in shown]
    if not files:
        raise FileNotFoundError(f"no file matches {text}: check the pattern")
    return sorted(files)


def find_table(folder: epath.PathLike, name: str, layout: str) -> str:
    """Returns the pattern of NAME.json, .jsonl, .parquet or NAME-*.parquet in a folder.

    Raises FileNotFoundError where there is none of them.
    """
    for ending in (".json", ".jsonl", ".parquet", "-*.parquet"):
        pattern = os.path.join(os.fspath(folder), f"{name}{ending}")
        with suppress(FileNotFoundError):
            find_files(pattern)
            return pattern
    raise FileNotFoundError(
        f"{folder} has no {name}.json, .jsonl or .parquet: give the folder of {layout}"
    )


def _describe(root: epath.Path, path: epath.Path) -> File:
    return File(path.relative_to(root).as_posix(), path, path.stat().length or 0)


def _files_below(root: epath.Path) -> list[epath.Path]:
    """Returns all files below a folder. Bucket libraries may list folders without their gs://."""

    def fail(error: OSError) -> NoReturn:
        raise error

    text = os.fspath(root)
    walk = root.walk() if "://" in text else os.walk(text, onerror=fail, followlinks=True)
    folders = [(epath.Path(folder), names) for folder, _, names in walk]
    return [
        root / folder.relative_to(folders[0][0]) / name
        for folder, names in folders
        for name in names
        if name
    ]


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns whatever a file system or a codec raises into one OSError that names the file.

    A plain ValueError passes through: it is ours, about the content.
    """
    try:
        yield
    except Exception as error:
        if type(error) is ValueError:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"cannot read {name}: {reason}") from error


def local_copy(path: epath.Path) -> str:
    """Returns a local path of the file: its own, or that of a cached copy of a remote file.

    Raises OSError for a file that cannot be read.
    """
    text = os.fspath(path)
    if "://" not in text:
        return text
    with reading(text):
        status = path.stat()
        key = content_hash(f"{text} {status.length} {status.mtime}".encode())
        copy = cache_folder() / "files" / f"{key}-{path.name}"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
            with atomic_file(epath.Path(copy), epath.Path(temporary)):
                path.copy(temporary, overwrite=True)
    return str(copy)


def cache_folder() -> Path:
    """Returns the folder of local copies: UNDO_JAX_CACHE, or the default if that is in a bucket."""
    folder = os.environ.get(CACHE, "")
    return Path(folder) if folder and "://" not in folder else Path.home() / ".cache" / "undo_jax"


def open_array_record(path: str, options: str = "") -> Any:
    """Returns an ArrayRecord reader. Raises OSError for a missing, truncated or other file."""
    with reading(path):
        try:
            buffer = {"file_reader_buffer_size": 2**15} if options else {}
            reader = ArrayRecordReader(path, options=options, **buffer)
        except ValueError as error:
            raise OSError(str(error)) from error
        if not reader.ok():
            raise OSError("it is no whole ArrayRecord file")
    return reader


def import_optional(module: str, library: str) -> Any:
    """Imports a module of an optional library. Raises ModuleNotFoundError without the library."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"{library} is not installed: {install_command('text')}"
        raise ModuleNotFoundError(message, name=library) from error


def content_hash(content: bytes) -> str:
    """Returns the first sixteen hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def json_hash(content: Any, sort_keys: bool = False) -> str:
    """Returns the hash of a value's JSON."""
    return content_hash(json.dumps(content, sort_keys=sort_keys).encode())
